"""The steps of a call: callback, interrupt, bar and observer over its draft and its passes, and at no cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from vgen.events import Decoding, Encoding, Event, Preview, Step
from vgen.models import LatentUpsampler
from vgen.pipelines import TextToVideoPipeline, TwoPass

DRAFT = {"draft_steps": 2, "num_inference_steps": 4}
TENSORS = ["latents", "prompt_embeds", "negative_prompt_embeds"]
Callback = Callable[..., Any]


@pytest.fixture
def two_pass() -> TwoPass:
    torch.manual_seed(1)
    return TwoPass(LatentUpsampler(in_channels=4, mid_channels=32, num_blocks_per_stage=1).eval())


@pytest.fixture
def projections(pipe: TextToVideoPipeline) -> Iterator[list[torch.Tensor]]:
    """What was projected: the text that the transformer is given."""
    seen: list[torch.Tensor] = []
    hook = pipe.transformer.caption_projection.register_forward_hook(lambda *call: seen.append(call[1][0]))
    yield seen
    hook.remove()


def latents(pipe: TextToVideoPipeline, **settings: Any) -> torch.Tensor:
    call = {"guidance_scale": 2.0, "output_type": "latent", "generator": torch.Generator().manual_seed(0)}
    return pipe("a red circle", **{**call, **settings}).frames


def _nothing(*_: Any) -> None:
    return None


def _empty(*_: Any) -> dict[str, Any]:
    return {}


def _the_same(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    return tensors


def _no_embeddings(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    return {"latents": tensors["latents"], "prompt_embeds": None}


@pytest.mark.parametrize("callback", [_nothing, _empty, _the_same, _no_embeddings])
@pytest.mark.parametrize("settings", [{"num_inference_steps": 10}, DRAFT])
def test_a_callback_that_changes_nothing_costs_nothing(
    pipe: TextToVideoPipeline, projections: list[Any], callback: Callback, settings: dict[str, Any]
) -> None:
    plain = latents(pipe, **settings)
    assert len(projections) == 1
    projections.clear()
    watched = latents(pipe, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=TENSORS, **settings)
    assert torch.equal(watched, plain)
    assert len(projections) == 1


def test_embeddings_that_a_callback_changes_count_from_the_next_step_on(
    pipe: TextToVideoPipeline, projections: list[Any]
) -> None:
    def other(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"prompt_embeds": tensors["prompt_embeds"] * 2} if index == 1 else {}

    def in_place(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> None:
        if index == 1:
            tensors["prompt_embeds"].mul_(2)

    plain = latents(pipe, **DRAFT)
    projections.clear()
    made = [
        latents(pipe, callback_on_step_end=change, callback_on_step_end_tensor_inputs=TENSORS, **DRAFT)
        for change in (other, in_place)
    ]
    assert torch.equal(*made)
    assert not torch.equal(made[0], plain)
    assert len(projections) == 2 * 2, "before and after the change, which lasts from the draft to the end of the clip"


def test_steps_are_counted_over_draft_and_clip(pipe: TextToVideoPipeline) -> None:
    seen: list[tuple[int, int, float]] = []

    def note(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> None:
        seen.append((index, pipe.num_timesteps, float(timestep)))

    latents(pipe, callback_on_step_end=note, **DRAFT)
    assert [entry[:2] for entry in seen] == [(index, 8) for index in range(8)]
    assert seen[0][2] == seen[2][2] == seen[4][2] == 1000.0, "each draft has a schedule of its own"
    assert pipe.num_timesteps == 8


def test_an_interrupt_in_the_draft_leaves_out_the_rest_and_gives_the_draft(
    pipe: TextToVideoPipeline, projections: list[Any]
) -> None:
    seen: list[torch.Tensor] = []

    def stop(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> None:
        seen.append(tensors["latents"])
        pipe._interrupt = True

    stopped = latents(pipe, callback_on_step_end=stop, **DRAFT)
    assert len(seen) == 1
    assert stopped.flatten(2).sort().values.allclose(seen[0].transpose(1, 2).sort().values)
    assert len(latents(pipe, **DRAFT)) == 1, "the next call is a new one"


def test_steps_are_counted_over_two_passes(pipe: TextToVideoPipeline, two_pass: TwoPass) -> None:
    seen: list[tuple[int, int]] = []

    def note(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> None:
        seen.append((index, pipe.num_timesteps))

    latents(pipe, two_pass=two_pass, callback_on_step_end=note, num_inference_steps=4)
    assert len(seen) > 4
    assert seen == [(index, len(seen)) for index in range(len(seen))]


def test_a_call_has_one_bar_that_users_configure(
    pipe: TextToVideoPipeline, two_pass: TwoPass, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe.set_progress_bar_config(disable=False, desc="mine", ncols=60, mininterval=0)
    try:
        for settings, steps in ((DRAFT, 8), ({"two_pass": two_pass, "num_inference_steps": 4}, None)):
            latents(pipe, **settings)
            lines = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if line.strip()]
            steps = steps or pipe.num_timesteps
            assert all(line.startswith("mine") and f"/{steps} " in line for line in lines)
            assert f"{steps}/{steps}" in lines[-1]
    finally:
        pipe.set_progress_bar_config(disable=True)


def test_an_observer_gets_the_phases_and_every_step(pipe: TextToVideoPipeline) -> None:
    seen: list[Event] = []
    plain = pipe("a", generator=torch.Generator().manual_seed(0), output_type="pt", **DRAFT).frames
    pipe.observer = seen.append
    try:
        watched = pipe("a", generator=torch.Generator().manual_seed(0), output_type="pt", **DRAFT).frames
    finally:
        pipe.observer = None
    assert torch.equal(plain, watched)
    assert seen[0] == Encoding() and seen[-1] == Decoding()
    steps = [entry for entry in seen if isinstance(entry, Step)]
    assert {entry.num_steps for entry in steps} == {8}
    assert sorted({entry.step for entry in steps}) == list(range(9))
    assert [entry.step for entry in steps] == sorted(entry.step for entry in steps)


def test_an_observer_ends_a_call_by_raising(pipe: TextToVideoPipeline) -> None:
    def stop(event: Event) -> None:
        if isinstance(event, Step) and event.step == 1:
            raise KeyboardInterrupt

    pipe.observer = stop
    try:
        with pytest.raises(KeyboardInterrupt):
            latents(pipe, **DRAFT)
    finally:
        pipe.observer = None
    assert len(latents(pipe, **DRAFT)) == 1


def test_previews_are_made_only_where_they_are_asked_for(pipe: TextToVideoPipeline) -> None:
    """The prediction of the last step is the clip; none changes it."""
    seen: list[Event] = []
    plain = latents(pipe, **DRAFT)
    pipe.observer = seen.append
    try:
        latents(pipe, **DRAFT)
        assert not any(isinstance(event, Preview) for event in seen)
        pipe.previews = True
        watched = latents(pipe, **DRAFT)
    finally:
        pipe.observer, pipe.previews = None, False
    previews = [event for event in seen if isinstance(event, Preview)]
    assert [(event.step, event.num_steps) for event in previews] == [(step, 8) for step in range(1, 9)]
    assert torch.equal(plain, watched)
    assert {event.latents.shape for event in previews} == {plain.shape}
    torch.testing.assert_close(previews[-1].latents, plain, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(previews[4].latents, plain, atol=1e-2)
