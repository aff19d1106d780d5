"""Classifier-free guidance against its formula."""

import pytest
import torch

from vgen.diffusion.guidance import ClassifierFreeGuidance, StepState, rescale_to
from vgen.errors import RequestError

STEP = StepState(0, 4, torch.tensor(1.0), torch.zeros(2, 5, 3))


def _predictions():
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(2, 5, 3, generator=generator) for name in ("cond", "uncond")}


def test_scale_one_is_the_conditional_branch_alone():
    guidance = ClassifierFreeGuidance(1.0, 0.7)
    predictions = _predictions()
    assert [branch.name for branch in guidance.branches(STEP)] == ["cond"]
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


@pytest.mark.parametrize(("scale", "rescale", "named"), [(-1.0, 0.0, "guidance_scale"), (3.0, 1.5, "guidance_rescale"),
                                                        (float("nan"), 0.0, "guidance_scale")])  # fmt: skip
def test_bad_numbers_are_refused(scale, rescale, named):
    with pytest.raises(RequestError, match=named):
        ClassifierFreeGuidance(scale, rescale)
