"""Which passes a call has, in which order, and that a call in two passes is planned once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vgen.models import LatentUpsampler
from vgen.pipelines import MaskedPredictionPipeline, TextToVideoPipeline, TwoPass, VideoCondition
from vgen.pipelines.coding.given_pixels import GivenPixels
from vgen.pipelines.passes.plan import plan_call

CLIP = GivenPixels(torch.zeros(1, 3, 9, 32, 32), 0, torch.ones(1))
STEPS = {"prompt": "a", "num_inference_steps": 4}


@pytest.fixture(scope="module")
def pipeline(tiny_pipeline_folder: Path) -> MaskedPredictionPipeline:
    loaded = MaskedPredictionPipeline.from_pretrained(tiny_pipeline_folder)
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture(scope="module")
def two_pass() -> TwoPass:
    return TwoPass(LatentUpsampler(in_channels=4, mid_channels=32, num_blocks_per_stage=1).eval())


def _inpainted() -> VideoCondition:
    mask = np.zeros((32, 32), np.float32)
    mask[:, :16] = 1
    return VideoCondition(np.zeros((9, 32, 32, 3), np.uint8), mask=mask)


@pytest.mark.parametrize(
    ("settings", "conditions", "clip", "expected"),
    [
        ({}, [], None, [("Pass", 4)]),
        ({"draft_steps": 2}, [], None, [("DraftedPass", 8)]),
        ({"denoise_strength": 0.5}, [], CLIP, [("Pass", 2)]),
        ({"draft_steps": 2}, [_inpainted()], None, [("Pass", 4), ("Reencoding", 0)]),
        ({"two_pass": True}, [], None, [("Pass", 4), ("RefiningPass", 2)]),
        ({"two_pass": True, "draft_steps": 2}, [], None, [("DraftedPass", 8), ("RefiningPass", 2)]),
        (
            {"two_pass": True},
            [_inpainted()],
            None,
            [("Pass", 4), ("Reencoding", 0), ("RefiningPass", 2), ("Reencoding", 0)],
        ),
    ],
)
def test_the_passes_of_a_call(
    pipeline: MaskedPredictionPipeline,
    two_pass: TwoPass,
    settings: dict[str, Any],
    conditions: list[VideoCondition],
    clip: GivenPixels | None,
    expected: list[tuple[str, int]],
) -> None:
    settings = {name: two_pass if name == "two_pass" else value for name, value in settings.items()}
    call = plan_call(pipeline, {**STEPS, **settings}, conditions, clip)
    assert [(type(one).__name__, one.num_steps) for one in call.passes] == expected
    assert call.num_steps == sum(steps for _, steps in expected)


def test_each_of_two_passes_has_its_size_and_the_call_the_size_asked_for(
    pipeline: MaskedPredictionPipeline, two_pass: TwoPass
) -> None:
    settings = {**STEPS, "two_pass": two_pass, "height": 48, "width": 40}
    call = plan_call(pipeline, settings, [VideoCondition(np.zeros((48, 40, 3), np.uint8))], None)
    sizes = [(one.settings.height, one.settings.width) for one in call.passes]
    assert sizes == [(24, 24), (48, 48)]
    assert [tuple(one.given[0].pixels.shape[-2:]) for one in call.passes] == sizes
    assert (call.settings.height, call.settings.width) == (48, 40) == tuple(call.given[0].pixels.shape[-2:])


def test_two_passes_are_one_call(pipeline: MaskedPredictionPipeline, two_pass: TwoPass, monkeypatch: Any) -> None:
    """The pipeline is entered once, and embeddings that a callback changes in place count for their pass alone."""
    pipe = TextToVideoPipeline.from_pipe(pipeline)
    entered, plain = [], TextToVideoPipeline._generate

    def counted(self: Any, *args: Any) -> Any:
        entered.append(args)
        return plain(self, *args)

    monkeypatch.setattr(TextToVideoPipeline, "_generate", counted)
    seen = []

    def note(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> None:
        seen.append(tensors["prompt_embeds"].clone())
        if index == 1:
            tensors["prompt_embeds"].mul_(2)

    call: dict[str, Any] = {**STEPS, "two_pass": two_pass, "output_type": "latent"}
    pipe(**call, callback_on_step_end=note, callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"])
    assert len(entered) == 1
    assert [torch.equal(embeds, seen[0]) for embeds in seen] == [True, True, False, False, True, True]
