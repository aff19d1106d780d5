"""Known tokens in training: never noised, never scored, and the same as what a pipeline builds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from vgen.diffusion.conditions import REFERENCE_FRAME, KnownLatents
from vgen.models import CausalVideoVAE
from vgen.pipelines import MaskedPredictionPipeline, VideoCondition
from vgen.training.config.data import SpritesConfig
from vgen.training.config.stages import TaskMix
from vgen.training.data.clips import SpriteClips, to_pixels
from vgen.training.data.latents import encode_clips
from vgen.training.judge.judge import judge
from vgen.training.objectives.flow.given_material import (
    ENCODED_TASKS,
    encoded_material,
    reference_material,
    region_masks,
)
from vgen.training.objectives.flow.tasks import (
    CACHED_TASKS,
    TASKS,
    FlowInputs,
    draw_task,
    known_latents,
    most_given_frames,
)
from vgen.training.randomness import Keys
from vgen.types import Strides

KEYS = Keys(0, 0)


def _frames(num_frames: int, batch: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randint(
        0, 256, (batch, num_frames, 32, 32, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )


def _known(vae: CausalVideoVAE, task: str, frames: torch.Tensor, keys: Keys = KEYS) -> list[KnownLatents]:
    if task in CACHED_TASKS:
        encoded = encode_clips(vae, frames)
        return known_latents(task, encoded["latents"], encoded["last"], vae.strides, keys)

    def encode(video: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return vae.normalize(vae.encode(video).latent_dist.mode())

    return encoded_material(task, to_pixels(frames), encode, vae.strides, keys)


def _inputs(vae: CausalVideoVAE, task: str, sigma: float, batch: int = 2) -> FlowInputs:
    encoded = encode_clips(vae, _frames(9, batch))
    known = _known(vae, task, _frames(9, batch))
    noise = torch.randn(batch, 48, 4, generator=torch.Generator().manual_seed(1))
    return FlowInputs(encoded["latents"], known, torch.full((batch,), sigma), noise, vae.strides, 8.0)


@pytest.mark.parametrize("task", [task for task in TASKS if task != "text"])
def test_given_tokens_are_clean_at_timestep_zero_with_no_weight(tiny_vae: CausalVideoVAE, task: str) -> None:
    inputs = _inputs(tiny_vae, task, 0.7)
    given = inputs.conditions.strength == 1
    assert given.any()
    assert not inputs.timestep[given].any()
    assert torch.equal(inputs.timestep[~given].unique(), torch.tensor([700.0]))
    extra = inputs.conditions.num_extra
    assert torch.equal(inputs.weight == 0, given[:, extra:])
    velocity = torch.zeros_like(inputs.hidden_states)
    before = inputs.errors(velocity)
    velocity[given] = 1e6
    assert torch.equal(inputs.errors(velocity), before)
    clean = torch.cat([inputs.conditions.extra.latents, inputs.conditions.clean_latents], 1) if extra else None
    expected = inputs.conditions.clean_latents if clean is None else clean
    assert torch.equal(inputs.hidden_states[given], expected[given])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("task", ENCODED_TASKS)
def test_hidden_pixels_reach_no_material_that_is_encoded(tiny_vae: CausalVideoVAE, task: str, seed: int) -> None:
    frames, keys = _frames(17), Keys(seed, 0)
    known = _known(tiny_vae, task, frames, keys)
    if task == "region":
        shown = region_masks(1, 17, 32, 32, keys)[0, 0].bool()
    else:
        shown = torch.zeros(17, 32, 32, dtype=torch.bool)
        for piece in known:
            count = 1 + (piece.latents.shape[2] - 1) * tiny_vae.strides.temporal
            shown[piece.frame_index : piece.frame_index + count] = True
    assert shown.any() and not shown.all()
    other = torch.where(shown[None, ..., None], frames, 255 - frames)
    again = _known(tiny_vae, task, other, keys)
    assert [piece.frame_index for piece in again] == [piece.frame_index for piece in known]
    for first, second in zip(known, again, strict=True):
        assert torch.equal(first.latents, second.latents)


def test_regions_differ_and_leave_something_to_do() -> None:
    masks = torch.cat([region_masks(8, 9, 64, 64, Keys(0, step)) for step in range(20)])
    given = masks.mean(dim=(1, 2, 3, 4))
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    assert given.min() > 0.03 and given.max() < 0.97
    assert (given < 0.4).any() and (given > 0.6).any()
    moving = (masks[:, :, 0] != masks[:, :, -1]).flatten(1).any(1).float().mean()
    assert 0.3 < moving < 0.7
    assert torch.equal(region_masks(3, 5, 32, 32, KEYS), region_masks(3, 5, 32, 32, KEYS))


def test_text_alone_has_one_timestep_a_sample(tiny_vae: CausalVideoVAE) -> None:
    inputs = _inputs(tiny_vae, "text", 0.25)
    assert torch.equal(inputs.timestep, torch.tensor([250.0, 250.0]))
    assert inputs.weight.all()
    perfect = inputs.target.clone()
    assert not inputs.errors(perfect).any()
    assert torch.allclose(inputs.errors(perfect + 2.0), torch.full((2,), 4.0))


def test_a_prefix_is_what_encoding_it_alone_gives(tiny_vae: CausalVideoVAE) -> None:
    frames = _frames(17)
    latents = encode_clips(tiny_vae, frames)["latents"]
    (known,) = known_latents("prefix", latents, None, tiny_vae.strides, KEYS)
    count = known.latents.shape[2]
    assert 2 <= count < latents.shape[2]
    alone = encode_clips(tiny_vae, frames[:, : 1 + (count - 1) * tiny_vae.strides.temporal])["latents"]
    torch.testing.assert_close(known.latents, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("task", ["first", "prefix", "last", "both_ends"])
def test_hidden_frames_reach_no_conditioning_tensor(tiny_vae: CausalVideoVAE, task: str) -> None:
    frames = _frames(9)
    other = frames.clone()
    other[:, 5:8] = 255 - other[:, 5:8]  # hidden in every task: a prefix of two latents is frames 0 to 4
    given = []
    for clip in (frames, other):
        encoded = encode_clips(tiny_vae, clip)
        given.append(known_latents(task, encoded["latents"], encoded["last"], tiny_vae.strides, KEYS))
    for first, second in zip(*given, strict=True):
        torch.testing.assert_close(first.latents, second.latents, rtol=0, atol=1e-6)
        assert first.frame_index == second.frame_index


@pytest.mark.parametrize("task", ["first", "last", "both_ends"])
@pytest.mark.parametrize("patch_size", [1, 2])
def test_training_inputs_equal_inference_inputs(
    make_native_components: Callable[..., dict[str, Any]], task: str, patch_size: int
) -> None:
    components = make_native_components(patch_size=patch_size)
    pipeline = MaskedPredictionPipeline(**components)
    pipeline.set_progress_bar_config(disable=True)
    vae = components["vae"]
    frames = _frames(9)
    encoded = encode_clips(vae, frames)
    tokens = (1, 48 // patch_size**2, 4 * patch_size**2)
    noise = torch.randn(tokens, generator=torch.Generator().manual_seed(1))
    known = known_latents(task, encoded["latents"], encoded["last"], vae.strides, KEYS)
    trained = FlowInputs(encoded["latents"], known, torch.ones(1), noise, vae.strides, 8.0, patch_size)

    calls: list[dict[str, Any]] = []
    forward = pipeline.transformer.forward
    pipeline.transformer.forward = lambda *args, **kwargs: calls.append(kwargs) or forward(*args, **kwargs)
    clip = frames[0].numpy()
    ends = {"first": [(0, clip[:1])], "last": [(8, clip[-1:])], "both_ends": [(0, clip[:1]), (8, clip[-1:])]}
    pipeline(
        conditions=[VideoCondition(np.ascontiguousarray(piece), frame_index=index) for index, piece in ends[task]],
        prompt="a red circle",
        latents=noise,
        height=32,
        width=32,
        num_frames=9,
        frame_rate=8.0,
        num_inference_steps=2,
        guidance_scale=1.0,
        max_sequence_length=24,
        output_type="latent",
    )
    called = calls[0]
    torch.testing.assert_close(called["hidden_states"], trained.hidden_states, rtol=0, atol=1e-5)
    torch.testing.assert_close(called["timestep"], trained.timestep, rtol=0, atol=1e-3)
    assert torch.equal(called["video_coords"], trained.coordinates[:1])


def test_a_reference_shows_the_object_elsewhere() -> None:
    clips = SpriteClips(SpritesConfig(tier=2))
    pictures = clips.pictures([3, 3, 4], torch.rand(3, 2, generator=torch.Generator().manual_seed(0)))
    assert pictures.shape == (3, 1, 64, 64, 3) and pictures.dtype == torch.uint8
    found = [judge(picture.numpy()) for picture in pictures]
    for verdict, index in zip(found, (3, 3, 4), strict=True):
        item = clips.world.scene(index).key.objects[0]
        assert (verdict.colour, verdict.shape) == (item.colour, item.shape)
    assert abs(found[0].centres - found[1].centres).max() > 5
    (piece,) = reference_material(torch.zeros(2, 3, 1, 8, 8), lambda video: video)
    assert piece.frame_index == REFERENCE_FRAME


def test_a_share_of_its_own() -> None:
    mix = TaskMix(text=0, first=0, prefix=0, other=0.5, region=0.25)
    assert mix.share("region") == 0.25 and mix.share("frames") == pytest.approx(0.5 / 6)
    drawn = [draw_task(mix, 3, Keys(0, step)) for step in range(2000)]
    assert drawn.count("region") / 2000 == pytest.approx(1 / 3, abs=0.04)
    with pytest.raises(ValidationError, match="share above 0"):
        TaskMix(text=0, first=0, prefix=0, other=0)


def test_task_shares() -> None:
    mix = TaskMix()
    drawn = [draw_task(mix, 3, Keys(0, step)) for step in range(2000)]
    assert drawn.count("text") / 2000 == pytest.approx(0.6, abs=0.04)
    assert drawn.count("first") / 2000 == pytest.approx(0.25, abs=0.04)
    assert set(drawn) == set(TASKS)
    assert {draw_task(mix, 1, Keys(0, step)) for step in range(50)} == {"text"}


def test_a_rehearsal_takes_the_size_of_the_largest_task() -> None:
    strides = Strides(4, 8, 8)
    assert most_given_frames({"text"}, 5, strides) is None and most_given_frames({"frames"}, 1, strides) is None
    assert most_given_frames({"text", "first"}, 5, strides) == 0
    assert most_given_frames({"text", "both_ends"}, 5, strides) == 1
    latents = torch.zeros(1, 2, 5, 4, 4)
    sizes = set()
    for step in range(60):
        video = torch.zeros(1, 3, 17, 32, 32)
        for task in ("suffix", "frames"):
            known = encoded_material(task, video, lambda v: torch.zeros(1, 2, 1 + (v.shape[2] - 1) // 4, 4, 4), strides,
                                     Keys(0, step))  # fmt: skip
            made = FlowInputs(latents, known, torch.zeros(1), torch.zeros(1, 80, 2), strides, 8.0)
            sizes.add(made.hidden_states.shape[1] // 16 - 5)
    assert max(sizes) == most_given_frames({"suffix", "frames"}, 5, strides) == 4
    grown = FlowInputs(latents, [], torch.zeros(1), torch.zeros(1, 80, 2), strides, 8.0)
    grown.grow(4)
    assert grown.hidden_states.shape[1] == grown.timestep.shape[1] == grown.coordinates.shape[2] == 144
    assert grown.errors(torch.ones(1, 144, 2)).shape == (1,)
