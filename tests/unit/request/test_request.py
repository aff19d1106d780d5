"""The request: what is refused and how it is said, and that it survives metadata."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from vgen.errors import RequestError, ShapeError, VgenError
from vgen.request.fields import MAX_SEED
from vgen.request.request import GenerateRequest, ResolvedRequest
from vgen.types import Strides

STRIDES = Strides(4, 8, 8)
DEFAULTS: dict[str, Any] = {
    "height": 64,
    "width": 64,
    "num_frames": 17,
    "frame_rate": 8.0,
    "num_inference_steps": 20,
    "guidance_scale": 3.0,
}


def _resolve(**fields: Any) -> ResolvedRequest:
    return GenerateRequest.create(**{"prompt": "a red circle", **fields}).resolve(DEFAULTS, STRIDES)


def test_what_is_left_out_comes_from_the_model() -> None:
    found = _resolve(width=128, seed="7")
    assert (found.num_frames, found.height, found.width, found.frame_rate) == (17, 64, 128, 8.0)
    assert (found.num_inference_steps, found.guidance_scale, found.guidance_rescale) == (20, 3.0, 0.0)
    assert (found.seed, found.negative_prompt, found.device, found.dtype) == (7, "", "auto", "auto")


def test_a_seed_is_drawn_once() -> None:
    seeds = {_resolve().seed for _ in range(8)}
    assert len(seeds) > 1
    assert all(0 <= seed <= MAX_SEED for seed in seeds)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 500}, "width=500 does not fit the model's stride 8.*496 or 504"),
        ({"height": 3}, "height=3.*use 8 or more"),
        ({"num_frames": 24}, "num_frames=24.*use 21 or 25"),
        ({"num_frames": 0}, "num_frames=0 is outside 1 to 1000000; the nearest is 1"),
        ({"num_frames": -5}, "num_frames=-5.*nearest is 1"),
        ({"num_frames": 1.5}, "num_frames=1.5 is not a whole number; use 1 or 2"),
        ({"num_frames": "abc"}, "num_frames='abc' is not a whole number"),
        ({"num_frames": True}, "num_frames=True is not a whole number"),
        ({"num_frames": [17]}, r"num_frames=\[17\] is not a whole number"),
        ({"num_inference_steps": 0}, "num_inference_steps=0.*1 to 1000; the nearest is 1"),
        ({"num_inference_steps": 10**6}, "num_inference_steps=1000000.*nearest is 1000"),
        ({"guidance_scale": math.nan}, "guidance_scale=nan is not a number; use one from 0 to 100"),
        ({"guidance_scale": "inf"}, "guidance_scale=inf is outside 0 to 100; the nearest is 100"),
        ({"guidance_rescale": 1.1}, "guidance_rescale=1.1.*nearest is 1"),
        ({"seed": -1}, "seed=-1 is outside 0 to 9223372036854775807; the nearest is 0"),
        ({"seed": 2**64}, "seed=18446744073709551616.*nearest is 9223372036854775807"),
        ({"seed": "9" * 5000}, "seed=.*not a whole number"),
        ({"frame_rate": 0}, "frame_rate=0 is outside 0.1 to 240; the nearest is 0.1"),
        ({"frame_rate": 1e9}, "frame_rate=1000000000.0.*nearest is 240"),
        ({"width": 100_000, "height": 100_000}, "needs about 2,040.00 GB.*use at most"),
        ({"num_frames": 999_997}, "needs about 49.15 GB"),
        ({"dtype": "float8"}, "dtype='float8' is not known: use float32, bfloat16, float16 or auto; did you mean"),
        ({"device": "gpu"}, "device='gpu' is not known: use cpu, cuda"),
        ({"fit": "crop"}, "fit='crop' is not known: use cover, contain or stretch"),
        ({"task": "animte", "image": "a.png"}, "task='animte'.*did you mean 'animate'"),
        ({"widht": 64}, "'widht' is not a field of a request: did you mean 'width'"),
        ({"model": 3}, "model=3 is not valid"),
        ({"prompt": " \n"}, "prompt is empty"),
        ({"prompt": 3}, "prompt=3 is not text"),
        ({"prompt": "x" * 1_000_000}, "prompt has 1,000,000 characters; at most 10,000"),
        ({"prompt": "a\0b"}, "prompt holds a NUL character at position 1"),
        ({"negative_prompt": "ab\udc80"}, "negative_prompt holds a lone surrogate .* at position 2"),
        ({"image": "a.png"}, "image='a.png' belongs to task 'animate', 'loop' or 'story', not 'generate'"),
        ({"task": "animate"}, "image is missing"),
        ({"task": "interpolate", "first": "a.png"}, "last is missing"),
        ({"seed": -1, "frame_rate": 0}, "seed=-1.*frame_rate=0"),
    ],
)
def test_refusals(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        _resolve(**fields)


def test_the_largest_size_that_is_named_is_accepted() -> None:
    with pytest.raises(ShapeError) as caught:
        _resolve(width=100_000, height=100_000)
    side = int(str(caught.value).rpartition(" x ")[2].rstrip("."))
    assert _resolve(width=side, height=side).width == side


@pytest.mark.parametrize("task", ["animate", "interpolate", "predict"])
def test_other_tasks_need_no_words(task: str) -> None:
    files = {"animate": {"image": "a"}, "interpolate": {"first": "a", "last": "b"}, "predict": {"video": "a"}}[task]
    assert _resolve(task=task, prompt="", **files).prompt == ""


@pytest.mark.parametrize(
    ("asked", "video_frames", "kept"), [(None, 100, 9), (None, 7, 5), (None, 1, 1), (1, 100, 1), ("13", 13, 13)]
)
def test_frames_to_keep(asked: Any, video_frames: int, kept: int) -> None:
    request = GenerateRequest.create(task="predict", video="a.mp4", keep_frames=asked)
    assert request.resolve(DEFAULTS, STRIDES, video_frames).keep_frames == kept


@pytest.mark.parametrize(
    ("asked", "video_frames", "message"),
    [
        (3, 100, "keep_frames=3 does not fit.*use 1 or 5"),
        (17, 100, "from 1 to 13 .*num_frames=17.*use 13"),
        (9, 6, "the video has 6.*use 5"),
        (0, 100, "keep_frames=0.*nearest is 1"),
    ],
)
def test_frames_that_cannot_be_kept(asked: int, video_frames: int, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        GenerateRequest.create(task="predict", video="a.mp4", keep_frames=asked).resolve(
            DEFAULTS, STRIDES, video_frames
        )


def test_nothing_left_to_predict() -> None:
    request = GenerateRequest.create(task="predict", video="a.mp4", num_frames=1)
    with pytest.raises(RequestError, match="leaves nothing to predict; use num_frames=5 or more"):
        request.resolve(DEFAULTS, STRIDES, 10)


def test_a_model_without_a_size() -> None:
    with pytest.raises(RequestError, match="height is not given, and the model has no default"):
        GenerateRequest.create(prompt="x", num_frames=17).resolve({}, STRIDES)


def test_plain_construction_is_pydantics() -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        GenerateRequest(prompt="x", num_frames=0)
    with pytest.raises(ValidationError, match="frozen"):
        GenerateRequest(prompt="x").seed = 3  # type: ignore[misc]


_TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=200)


@settings(max_examples=40, deadline=None)
@given(prompt=_TEXT, negative=_TEXT, seed=st.integers(0, MAX_SEED), scale=st.floats(0, 100), latents=st.integers(0, 9))
def test_metadata_round_trip(prompt: str, negative: str, seed: int, scale: float, latents: int) -> None:
    request = _resolve(
        task="animate",
        image="picture.png",
        prompt=prompt,
        negative_prompt=negative,
        seed=seed,
        guidance_scale=scale,
        num_frames=4 * latents + 1,
    )
    metadata = json.loads(json.dumps(request.to_metadata("abc", {"vgen": "1"})))
    assert metadata["model_hash"] == "abc"
    assert ResolvedRequest.from_metadata(metadata) == request


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(GenerateRequest.model_fields)), st.one_of(
    st.none(), st.text(), st.integers(), st.floats(), st.booleans(), st.lists(st.integers(), max_size=2)
), max_size=5))  # fmt: skip
def test_whatever_is_asked_is_resolved_or_refused(fields: dict[str, Any]) -> None:
    try:
        found = GenerateRequest.create(**fields).resolve(DEFAULTS, STRIDES)
    except VgenError as error:
        assert str(error)
    else:
        assert (found.num_frames - 1) % 4 == 0
        assert found.width % 8 == 0


_LISTS = {
    "guidance_sigmas": [1.0, 0.9],
    "guidance_scale": [1.0, 6.0],
    "guidance_rescale": [0.0, 0.5],
    "stg_scale": [0.0, 4.0],
    "stg_blocks": [[], [2, 3]],
    "stg_mode": "attention_values",
    "cfg_star": True,
    "num_inference_steps": 30,
}


def test_a_preset_goes_before_the_models_defaults() -> None:
    """And behind what was asked; the metadata holds its values, so that the clip can be made without it."""
    presets = {"original": {"guidance_scale": 4.0, "stg_scale": 1.0, "stg_blocks": [19]}, "lists": _LISTS}
    defaults = {**DEFAULTS, "presets": presets}

    def resolve(**fields: Any) -> ResolvedRequest:
        return GenerateRequest.create(prompt="a", seed=1, **fields).resolve(defaults, STRIDES)

    plain, found = resolve(), resolve(preset="original")
    assert (plain.guidance_scale, plain.stg_scale, plain.stg_blocks, plain.num_branches) == (3.0, None, None, 2)
    assert (found.guidance_scale, found.stg_scale, found.stg_blocks, found.stg_mode, found.num_branches) == (
        4.0, 1.0, (19,), "attention_values", 3,
    )  # fmt: skip
    asked = resolve(preset="original", guidance_scale=2, stg_blocks="5", num_inference_steps=7)
    assert (asked.guidance_scale, asked.stg_blocks, asked.num_inference_steps) == (2.0, (5,), 7)
    assert resolve(preset="original", stg_scale=0).num_branches == 2
    lists = resolve(preset="lists")
    assert (lists.num_inference_steps, lists.guidance_scale, lists.stg_blocks) == (30, (1.0, 6.0), ((), (2, 3)))
    assert (lists.guidance_sigmas, lists.cfg_star, lists.num_branches) == ((1.0, 0.9), True, 3)
    for request in (found, asked, lists):
        assert ResolvedRequest.from_metadata(json.loads(json.dumps(request.to_metadata()))) == request
    with pytest.raises(RequestError, match="preset='best' is not one of this model: it has lists, original"):
        resolve(preset="best")
    with pytest.raises(RequestError, match="this model was distilled with its guidance"):
        GenerateRequest.create(prompt="a", preset="original").resolve({**defaults, "distilled": True}, STRIDES)


def test_foreign_metadata_is_refused() -> None:
    with pytest.raises(RequestError, match="seed is missing"):
        ResolvedRequest.from_metadata({"prompt": "x"})


def test_a_video_is_changed_whole_or_as_far_as_the_model_goes() -> None:
    def frames(video_frames: int | None, **fields: Any) -> int:
        request = GenerateRequest.create(task="restyle", video="a.mp4", prompt="x", **fields)
        return request.resolve(DEFAULTS, STRIDES, video_frames).num_frames

    assert [frames(None), frames(100), frames(11), frames(11, num_frames=5)] == [17, 17, 9, 5]
    with pytest.raises(RequestError, match="num_frames=33 and the video has 11 frames: use 9 or fewer"):
        frames(11, num_frames=33)


def test_a_call_is_given_what_is_settled_and_no_length_or_inputs() -> None:
    request = _resolve(stg_scale=1, stg_blocks="3", known_passes=2, scale=2)
    assert request.call_settings() == {
        "negative_prompt": "", "height": 64, "width": 64, "frame_rate": 8.0, "num_inference_steps": 20,
        "guidance_scale": 3.0, "guidance_rescale": 0.0, "stg_scale": 1.0, "stg_blocks": (3,),
        "stg_mode": "attention_values", "known_passes": 2, "vae_memory": "auto",
    }  # fmt: skip
    assert "vae_memory" not in _resolve(memory="8GB").call_settings(), "as planned"


def test_lists_have_one_value_per_step_or_level() -> None:
    assert _resolve(num_inference_steps=2, guidance_scale=[1, 3]).guidance_scale == (1.0, 3.0)
    assert _resolve(num_inference_steps=2, guidance_scale=[1, 3], draft_steps=5, num_frames=1).draft_steps == 5
    assert _resolve(guidance_sigmas=[1, 0.5], stg_scale=[0, 1], stg_blocks=[[], [2]]).num_branches == 3
    for fields, message in (
        ({"guidance_scale": [1, 3]}, "guidance_scale holds 2 values for 20 steps: give one for each step"),
        ({"stg_scale": 1, "stg_blocks": [[1], [2]]}, "stg_blocks holds 2 values for 20 steps"),
        ({"guidance_scale": [1] * 20, "draft_steps": 5}, "guidance_scale holds 20 values for 5 steps"),
        (
            {"guidance_rescale": [0, 1], "guidance_sigmas": [1, 0.8, 0.5]},
            "guidance_rescale holds 2 values for 3 levels",
        ),
    ):
        with pytest.raises(RequestError, match=message):
            _resolve(**fields)


def test_metadata_of_earlier_versions_is_read() -> None:
    """As 9b83d58 wrote it; nothing is lost or added."""
    metadata = {
        "quantize": "int8", "step_cache": "taylorseer:2", "task": "predict", "prompt": "a", "model": "sprites",
        "video": "a.mp4", "backward": True, "fit": "cover", "keep_known_pixels": True, "lora": ["a.safetensors:0.5"],
        "negative_prompt": "", "seed": 5, "num_frames": 9, "height": 64, "width": 64, "frame_rate": 8.0,
        "num_inference_steps": 3, "guidance_scale": 3.0, "guidance_rescale": 0.0, "sigmas": [1.0, 0.7, 0.4],
        "keep_frames": 5, "device": "cpu", "dtype": "float32", "lossy": ["quantize=int8", "step_cache=taylorseer:2"],
        "model_hash": "x", "versions": {"vgen": "0.1.0"},
    }  # fmt: skip
    request = ResolvedRequest.from_metadata(metadata)
    assert json.loads(json.dumps(request.to_metadata("x", {"vgen": "0.1.0"}))) == metadata
