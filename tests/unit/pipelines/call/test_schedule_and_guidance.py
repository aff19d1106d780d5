"""From settings to guidance and schedule."""

import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from vgen.diffusion.guidance import (
    ClassifierFreeGuidance,
    ComposedGuidance,
    SpatioTemporalGuidance,
    StepState,
    build_guidance,
)
from vgen.diffusion.guidance.values import at_step
from vgen.diffusion.schedules import linear_quadratic
from vgen.errors import RequestError
from vgen.hub.catalog import CATALOG, DISTILLED_SIGMAS
from vgen.pipelines.call.conventions import NATIVE, ORIGINAL
from vgen.pipelines.call.schedule_and_guidance import largest_scale, sampling, set_schedule
from vgen.pipelines.call.settings import GenerationSettings
from vgen.request.steps import resolution_shift_mu

SIZE = {"height": 64, "width": 64, "num_frames": 17, "frame_rate": 8.0}
SHIFTING = {
    "use_dynamic_shifting": True,
    "base_shift": 0.95,
    "max_shift": 2.05,
    "base_image_seq_len": 1024,
    "max_image_seq_len": 4096,
    "shift_terminal": 0.1,
}


def _settings(model=(), **given):
    return GenerationSettings.fill({"prompt": "a", **given}, {**SIZE, **dict(model)}, NATIVE.defaults)


def _guidance(settings):
    return build_guidance(settings, settings.guidance)


def _schedule(scheduler, tokens=320, convention=NATIVE, **given):
    set_schedule(scheduler, _settings(**given), tokens, convention, torch.device("cpu"))
    return scheduler


def test_plain_numbers_are_classifier_free_guidance():
    assert _guidance(_settings(guidance_scale=3.0, guidance_rescale=0.2)) == ClassifierFreeGuidance(3.0, 0.2)
    assert _guidance(_settings(guidance_scale=3.0, cfg_star=True)) == ClassifierFreeGuidance(3.0, star=True)
    own = ClassifierFreeGuidance(7.0)
    assert _guidance(_settings(guidance=own, stg_scale=1.0)) is own


def test_spatiotemporal_guidance_is_added():
    guidance = _guidance(_settings(guidance_scale=3.0, guidance_rescale=0.7, stg_scale=1.0, stg_blocks=[1]))
    parts = (ClassifierFreeGuidance(3.0), SpatioTemporalGuidance((1,), 1.0))
    assert guidance == ComposedGuidance(parts, 0.7)
    by_model = _guidance(_settings({"stg_blocks": [4], "stg_mode": "attention_skip"}, stg_scale=[0.0, 1.0]))
    assert by_model.parts[1] == SpatioTemporalGuidance((4,), (0.0, 1.0), "attention_skip")
    with pytest.raises(RequestError, match="stg_scale=1 needs stg_blocks"):
        _guidance(_settings(stg_scale=1.0))


def test_a_preset_goes_before_the_models_defaults():
    model = {
        "guidance_scale": 5.0,
        "presets": {"original": {"stg_scale": 1.0, "stg_blocks": [1], "guidance_scale": 3.0}},
    }
    found = _settings(model, preset="original")
    assert (found.guidance_scale, found.stg_scale, found.stg_blocks) == (3.0, 1.0, (1,))
    assert _settings(model).guidance_scale == 5.0
    assert _settings(model, preset="original", guidance_scale=2.0).guidance_scale == 2.0
    with pytest.raises(RequestError, match="preset='other' is not one of this model: it has original"):
        _settings(model, preset="other")
    with pytest.raises(RequestError, match="distilled for plain Euler steps"):
        _settings({**model, "distilled": True, "guidance_scale": 3.0}, preset="original")


def test_lists_by_sigma():
    lists = {"guidance_scale": [1.0, 8.0], "stg_scale": [0.0, 4.0], "stg_blocks": [[], [1, 2]]}
    guidance = _guidance(_settings(**lists, guidance_sigmas=[1.0, 0.9]))
    for sigma, names in (
        (1.0, ["cond"]),
        (0.95, ["uncond", "cond", "perturbed"]),
        (0.2, ["uncond", "cond", "perturbed"]),
    ):
        step = StepState(0, 30, torch.tensor(sigma), torch.zeros(1))
        assert [branch.name for branch in guidance.branches(step)] == names
    guidance.check(30, 3)
    constant_blocks = _guidance(_settings(stg_scale=[0.0, 4.0], stg_blocks=[1, 2], guidance_sigmas=[1.0, 0.9]))
    assert constant_blocks.parts[1].blocks == (1, 2)
    assert largest_scale(_settings(**lists)) == 8.0
    with pytest.raises(RequestError, match="2 sigmas for 3 values"):
        _guidance(_settings(guidance_scale=[1.0, 2.0, 3.0], guidance_sigmas=[1.0, 0.9]))


@pytest.mark.parametrize("num_steps", [8, 20, 30, 40, 60])
@pytest.mark.parametrize("options", [{}, SHIFTING])
def test_lists_by_sigma_are_mapped_as_in_the_original(num_steps, options):
    """Each step takes the first entry whose noise level is not above its own, else the last."""
    preset = CATALOG["ltx-13b-0.9.8-dev"].defaults["presets"]["original"]
    levels = preset["guidance_sigmas"]
    scheduler = _schedule(FlowMatchEulerDiscreteScheduler(**options), 4000, ORIGINAL, num_inference_steps=num_steps)
    guidance = _guidance(_settings(**{**preset, "num_inference_steps": num_steps}))
    met = set()
    for index, timestep in enumerate(scheduler.timesteps):
        sigma = timestep / 1000
        reached = [place for place, level in enumerate(levels) if level <= sigma + 1e-6]
        entry = reached[0] if reached else len(levels) - 1
        step = StepState(index, num_steps, sigma, torch.zeros(1))
        assert at_step(guidance.rescale, step) == preset["guidance_rescale"][entry]
        names = [branch.name for branch in guidance.branches(step)]
        wanted = ["uncond"] * (preset["guidance_scale"][entry] > 1) + ["cond"]
        assert names == wanted + ["perturbed"] * (preset["stg_scale"][entry] > 0)
        if "perturbed" in names:
            assert guidance.branches(step)[-1].skip_layers.blocks == preset["stg_blocks"][entry]
        met.add(entry)
    assert num_steps < 20 or options or met == set(range(7))


def test_a_schedule_by_hand_is_used_as_it_is():
    for options in ({}, SHIFTING, {"shift": 3.0}):
        scheduler = _schedule(FlowMatchEulerDiscreteScheduler(**options), sigmas=DISTILLED_SIGMAS)
        assert torch.equal(scheduler.sigmas, torch.tensor([*DISTILLED_SIGMAS, 0.0]))
        assert torch.equal(scheduler.timesteps, torch.tensor(DISTILLED_SIGMAS) * 1000)
        same = _schedule(scheduler, timesteps=[1000 * sigma for sigma in DISTILLED_SIGMAS])
        torch.testing.assert_close(same.sigmas, torch.tensor([*DISTILLED_SIGMAS, 0.0]))
        assert same.step_index is None


def test_it_steps_to_clean():
    scheduler = _schedule(FlowMatchEulerDiscreteScheduler(**SHIFTING), sigmas=[1.0, 0.7, 0.2])
    clean, noise = torch.randn(1, 3, 2), torch.randn(1, 3, 2)
    tokens = noise
    for timestep in scheduler.timesteps:
        tokens = scheduler.step(noise - clean, timestep, tokens, return_dict=False)[0]
    torch.testing.assert_close(tokens, clean)


@pytest.mark.parametrize("tokens", [320, 4096, 10_240])
def test_shifted_by_the_token_count_and_not_clamped(tokens):
    even, factor = torch.arange(8, 0, -1) / 8, math.exp(resolution_shift_mu(tokens))
    shifted = factor * even / (1 + (factor - 1) * even)
    expected = 1 - (1 - shifted) * (1 - 0.1) / (1 - shifted[-1])
    for convention in (NATIVE, ORIGINAL):
        scheduler = _schedule(FlowMatchEulerDiscreteScheduler(**SHIFTING), tokens, convention, num_inference_steps=8)
        torch.testing.assert_close(scheduler.sigmas, torch.cat([expected, torch.zeros(1)]), rtol=0, atol=1e-6)


def test_where_the_scheduler_does_not_shift_by_tokens():
    scheduler = _schedule(FlowMatchEulerDiscreteScheduler(shift=3.0), num_inference_steps=4)
    even = torch.tensor([1.0, 0.75, 0.5, 0.25])
    torch.testing.assert_close(scheduler.sigmas[:-1], 3 * even / (1 + 2 * even))
    original = _schedule(FlowMatchEulerDiscreteScheduler(), convention=ORIGINAL, num_inference_steps=8)
    torch.testing.assert_close(original.sigmas[:-1], linear_quadratic(8))


def test_one_step():
    for options in ({}, SHIFTING):
        scheduler = _schedule(FlowMatchEulerDiscreteScheduler(**options), num_inference_steps=1)
        assert scheduler.sigmas.tolist() == [1.0, 0.0]


def test_the_end_of_a_schedule():
    whole = _schedule(FlowMatchEulerDiscreteScheduler(**SHIFTING), num_inference_steps=10)
    part = _schedule(FlowMatchEulerDiscreteScheduler(**SHIFTING), num_inference_steps=10, denoise_strength=0.35)
    assert torch.equal(part.timesteps, whole.timesteps[7:])
    assert torch.equal(part.sigmas, whole.sigmas[7:])


def test_stochastic_sampling_is_for_the_time_being():
    scheduler = FlowMatchEulerDiscreteScheduler()
    with sampling(scheduler, True):
        assert scheduler.config.stochastic_sampling is True
    assert scheduler.config.stochastic_sampling is False
    with pytest.raises(KeyError), sampling(scheduler, True):
        raise KeyError
    with sampling(scheduler, None):
        assert scheduler.config.stochastic_sampling is False
    assert scheduler.config.stochastic_sampling is False


def test_a_model_that_was_distilled():
    filled = _settings({"sigmas": list(DISTILLED_SIGMAS)})
    assert (filled.num_inference_steps, filled.sigmas) == (8, DISTILLED_SIGMAS)
    assert _settings({"allowed_inference_steps": [4, 8]}).num_inference_steps == 8
    assert _settings({"allowed_inference_steps": [4, 8], "sigmas": [1.0]}, num_inference_steps=4).sigmas is None
    with pytest.raises(RequestError, match="num_inference_steps=30: this model was distilled for 8 steps"):
        _settings({"sigmas": list(DISTILLED_SIGMAS)}, num_inference_steps=30)
