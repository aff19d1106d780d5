"""Each guidance against its formula, numbers by step and by sigma, and sums of guidances."""

import pytest
import torch

from vgen.diffusion.guidance import (
    AdaptiveProjectedGuidance,
    Branch,
    BySigma,
    ClassifierFreeGuidance,
    ComposedGuidance,
    Guidance,
    SpatioTemporalGuidance,
    StepState,
    project_unconditional,
    rescale_to,
)
from vgen.errors import RequestError
from vgen.types import SkipLayers

STEP = StepState(0, 4, torch.tensor(1.0), torch.zeros(2, 5, 3))


def _step(index, num_steps=4, sigma=1.0):
    return StepState(index, num_steps, torch.tensor(sigma), torch.zeros(2, 5, 3))


def _predictions():
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(2, 5, 3, generator=generator) for name in ("cond", "uncond", "perturbed")}


def _names(guidance, step=STEP):
    return [branch.name for branch in guidance.branches(step)]


def test_scale_one_is_the_conditional_branch_alone():
    guidance = ClassifierFreeGuidance(1.0, 0.7)
    predictions = _predictions()
    assert _names(guidance) == ["cond"]
    assert not guidance.needs_negative
    assert guidance.combine({"cond": predictions["cond"]}, STEP) is predictions["cond"]


def test_guided_velocity():
    predictions = _predictions()
    guidance = ClassifierFreeGuidance(3.0)
    assert [(branch.name, branch.negative) for branch in guidance.branches(STEP)] == [("uncond", True), ("cond", False)]
    expected = 3 * predictions["cond"] - 2 * predictions["uncond"]
    torch.testing.assert_close(guidance.combine(predictions, STEP), expected)


def test_full_rescale_has_the_deviation_of_the_conditional_branch():
    predictions = _predictions()
    rescaled = ClassifierFreeGuidance(5.0, 1.0).combine(predictions, STEP)
    torch.testing.assert_close(rescaled.std(dim=(1, 2)), predictions["cond"].std(dim=(1, 2)))
    plain = ClassifierFreeGuidance(5.0).combine(predictions, STEP)
    half = ClassifierFreeGuidance(5.0, 0.5).combine(predictions, STEP)
    torch.testing.assert_close(half, (plain + rescale_to(plain, predictions["cond"], 1.0)) / 2)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: ClassifierFreeGuidance(-1.0), "guidance_scale=-1"),
        (lambda: ClassifierFreeGuidance(float("nan")), "guidance_scale=nan"),
        (lambda: ClassifierFreeGuidance("3"), "guidance_scale='3'"),
        (lambda: ClassifierFreeGuidance(True), "guidance_scale=True"),
        (lambda: ClassifierFreeGuidance([3.0, -2.0]), "guidance_scale=-2"),
        (lambda: ClassifierFreeGuidance([]), "guidance_scale is an empty list"),
        (lambda: ClassifierFreeGuidance(3.0, 1.5), "guidance_rescale=1.5"),
        (lambda: SpatioTemporalGuidance([1], mode="residual"), "would change nothing: use one of attention_values"),
        (lambda: SpatioTemporalGuidance([1], mode="attention"), "stg_mode='attention' is not known"),
        (lambda: SpatioTemporalGuidance([1.5]), "stg_blocks"),
        (lambda: SpatioTemporalGuidance([[1], 2]), "stg_blocks=2"),
        (lambda: SpatioTemporalGuidance([1], -1.0), "stg_scale=-1"),
        (lambda: ComposedGuidance(()), "no parts"),
        (lambda: ComposedGuidance((ClassifierFreeGuidance(),), 2.0), "guidance_rescale=2"),
        (lambda: AdaptiveProjectedGuidance(3.0, eta=-1.0), "eta=-1"),
        (lambda: AdaptiveProjectedGuidance(3.0, momentum=2.0), "momentum=2"),
        (lambda: BySigma([1.0, 0.5], [1.0]), "2 sigmas for 1 value"),
        (lambda: BySigma([0.5, 1.0], [1.0, 2.0]), "must descend"),
    ],
)
def test_bad_numbers_are_refused(make, named):
    with pytest.raises(RequestError, match=named):
        make()


def test_lists_hold_one_value_a_step():
    guidance, predictions = ClassifierFreeGuidance([1.0, 3.0, 5.0, 1.0], [0.0, 0.0, 1.0, 0.0]), _predictions()
    assert guidance.needs_negative
    assert [len(guidance.branches(_step(index))) for index in range(4)] == [1, 2, 2, 1]
    plain = ClassifierFreeGuidance(3.0).combine(predictions, STEP)
    assert torch.equal(guidance.combine(predictions, _step(1)), plain)
    rescaled = ClassifierFreeGuidance(5.0, 1.0).combine(predictions, STEP)
    assert torch.equal(guidance.combine(predictions, _step(2)), rescaled)
    assert not ClassifierFreeGuidance([1.0, 0.5]).needs_negative
    guidance.check(4, 2)
    with pytest.raises(RequestError, match="guidance_scale holds 4 values for 6 steps"):
        guidance.check(6, 2)


def test_values_by_sigma_do_not_depend_on_the_number_of_steps():
    guidance = ClassifierFreeGuidance(BySigma([1.0, 0.9, 0.6], [1.0, 6.0, 2.0]))
    scales = {1.0: 1, 0.95: 2, 0.9: 2, 0.7: 2, 0.6: 2, 0.1: 2}
    assert {sigma: len(guidance.branches(_step(0, sigma=sigma))) for sigma in scales} == scales
    predictions = _predictions()
    for sigma, scale in ((0.95, 6.0), (0.9, 6.0), (0.7, 2.0), (0.1, 2.0)):
        expected = ClassifierFreeGuidance(scale).combine(predictions, STEP)
        assert torch.equal(guidance.combine(predictions, _step(3, sigma=sigma)), expected)
    guidance.check(17, 2)


def test_cfg_star_scales_the_unconditional_velocity_to_its_projection():
    predictions = _predictions()
    scaled = project_unconditional(predictions["uncond"], predictions["cond"])
    rest = (predictions["cond"] - scaled).flatten(1)
    torch.testing.assert_close((rest * scaled.flatten(1)).sum(1), torch.zeros(2), atol=1e-5, rtol=0)
    expected = ClassifierFreeGuidance(3.0).combine({**predictions, "uncond": scaled}, STEP)
    torch.testing.assert_close(ClassifierFreeGuidance(3.0, star=True).combine(predictions, STEP), expected)
    assert (expected - ClassifierFreeGuidance(3.0).combine(predictions, STEP)).abs().max() > 0.1


def test_spatiotemporal_guidance():
    guidance, predictions = SpatioTemporalGuidance([1, 3], 2.0, "attention_skip"), _predictions()
    assert not guidance.needs_negative
    conditional, perturbed = guidance.branches(STEP)
    assert (conditional.name, conditional.skip_layers) == ("cond", None)
    assert perturbed.skip_layers == SkipLayers("attention_skip", (1, 3))
    assert not perturbed.negative
    expected = 3 * predictions["cond"] - 2 * predictions["perturbed"]
    torch.testing.assert_close(guidance.combine(predictions, STEP), expected)
    guidance.check(9, 4)
    with pytest.raises(RequestError, match=r"stg_blocks=\[3\] are not there: the transformer has 0 to 2"):
        guidance.check(9, 3)


def test_blocks_by_step():
    guidance = SpatioTemporalGuidance([[], [0], [1, 2], [0]], [1.0, 1.0, 1.0, 0.0])
    blocks = [[branch.skip_layers for branch in guidance.branches(_step(index))[1:]] for index in range(4)]
    assert blocks == [[], [SkipLayers("attention_values", (0,))], [SkipLayers("attention_values", (1, 2))], []]
    predictions = _predictions()
    assert guidance.combine(predictions, _step(3)) is predictions["cond"]
    guidance.check(4, 3)
    with pytest.raises(RequestError, match="stg_scale holds 4 values for 3 steps"):
        guidance.check(3, 3)
    by_sigma = SpatioTemporalGuidance(BySigma([1.0, 0.5], [[], [7]]))
    assert _names(by_sigma, _step(0, sigma=1.0)) == ["cond"]
    assert _names(by_sigma, _step(0, sigma=0.7)) == ["cond", "perturbed"]
    with pytest.raises(RequestError, match=r"stg_blocks=\[7\]"):
        by_sigma.check(3, 3)


def test_a_sum_of_guidances():
    predictions = _predictions()
    cond, uncond, perturbed = (predictions[name] for name in ("cond", "uncond", "perturbed"))
    parts = (ClassifierFreeGuidance(3.0), SpatioTemporalGuidance([0], 0.5))
    guidance = ComposedGuidance(parts)
    assert guidance.needs_negative
    assert _names(guidance) == ["uncond", "cond", "perturbed"]
    expected = uncond + 3 * (cond - uncond) + 0.5 * (cond - perturbed)
    torch.testing.assert_close(guidance.combine(predictions, STEP), expected)
    rescaled = ComposedGuidance(parts, 0.7).combine(predictions, STEP)
    torch.testing.assert_close(rescaled, rescale_to(expected, cond, 0.7))
    with pytest.raises(RequestError, match="guidance_rescale holds 2 values for 4 steps"):
        ComposedGuidance(parts, [0.0, 0.1]).check(4, 2)
    with pytest.raises(RequestError, match="stg_blocks"):
        guidance.check(4, 0)


def test_two_perturbations_need_two_names():
    first, second = SpatioTemporalGuidance([0]), SpatioTemporalGuidance([1])
    with pytest.raises(RequestError, match="different branches 'perturbed'"):
        ComposedGuidance((first, second)).branches(STEP)
    renamed = SpatioTemporalGuidance([1], name="worse")
    assert _names(ComposedGuidance((first, renamed))) == ["cond", "perturbed", "worse"]


def test_adaptive_projected_guidance():
    predictions = _predictions()
    step = StepState(0, 4, torch.tensor(0.8), torch.randn(2, 5, 3))
    cond = predictions["cond"]
    plain = AdaptiveProjectedGuidance(3.0, eta=1.0, norm_threshold=0.0, momentum=0.0).combine(predictions, step)
    torch.testing.assert_close(plain, ClassifierFreeGuidance(3.0).combine(predictions, step), rtol=1e-4, atol=1e-5)
    orthogonal = AdaptiveProjectedGuidance(3.0, eta=0.0, norm_threshold=0.0, momentum=0.0).combine(predictions, step)
    clean = (step.latents - 0.8 * cond).flatten(1)
    torch.testing.assert_close(((orthogonal - cond).flatten(1) * clean).sum(1), torch.zeros(2), rtol=0, atol=1e-4)
    short = AdaptiveProjectedGuidance(3.0, eta=1.0, norm_threshold=0.5, momentum=0.0).combine(predictions, step)
    length = 0.8 * (short - cond).flatten(1).norm(dim=1)
    torch.testing.assert_close(length, torch.full((2,), 1.0), rtol=1e-4, atol=0)
    assert _names(AdaptiveProjectedGuidance(1.0)) == ["cond"]


def test_momentum_starts_anew_with_every_call():
    guidance, predictions = AdaptiveProjectedGuidance(3.0, momentum=-0.5), _predictions()
    first, second = guidance.combine(predictions, _step(0)), guidance.combine(predictions, _step(1))
    assert not torch.equal(first, second)
    assert torch.equal(guidance.combine(predictions, _step(0)), first)


def test_a_new_guidance_is_one_small_class():
    class Mean(Guidance):
        needs_negative = True

        def branches(self, step):
            return Branch("cond"), Branch("uncond", negative=True)

        def combine(self, predictions, step):
            return (predictions["cond"] + predictions["uncond"]) / 2

    guidance, predictions = Mean(), _predictions()
    guidance.check(4, 2)
    assert _names(ComposedGuidance((guidance, SpatioTemporalGuidance([0])))) == ["cond", "uncond", "perturbed"]
    assert torch.equal(guidance.combine(predictions, STEP), (predictions["cond"] + predictions["uncond"]) / 2)
