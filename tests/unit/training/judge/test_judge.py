"""The judge itself: right on rendered clips, clean and degraded, and wrong on wrong ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from vgen.errors import ShapeError
from vgen.training.data.sprites import AnswerKey, SpriteClip, SpriteWorld
from vgen.training.data.sprites.palette import COLOURS
from vgen.training.judge.judge import judge, score

Frames = NDArray[np.uint8]
_CLIPS = 28


@cache
def _clips(tier: int) -> tuple[SpriteClip, ...]:
    world = SpriteWorld("test", tier)
    return tuple(world.sample(index) for index in range(_CLIPS))


def _with(key: AnswerKey, **changes: object) -> AnswerKey:
    return replace(key, objects=(replace(key.objects[0], **changes),))  # type: ignore[arg-type]


@pytest.mark.parametrize("tier", [1, 2])
@pytest.mark.parametrize("way", ["clean", "noise", "blur"])
def test_rendered_clips_are_read_right(tier: int, way: str, degraded: Callable[[Frames, str], Frames]) -> None:
    wrong = [clip.key for clip in _clips(tier) if not score(degraded(clip.frames, way), clip.key).joint]
    assert len(wrong) <= (0 if tier == 1 else 1), wrong


@pytest.mark.parametrize("motion", ["bounce", "circle", "zigzag", "rotate", "change", "appear", "then"])
def test_the_harder_motions_are_read_right(motion: str) -> None:
    world = SpriteWorld("validation", 2)
    places = [index for index in range(400) if world.scene(index).key.objects[0].motion == motion][:6]
    for clip in map(world.sample, places):
        seen, wanted = judge(clip.frames), clip.key.objects[0]
        assert (seen.motion, seen.phases, seen.colour_to) == (motion, wanted.phases, wanted.colour_to)


@pytest.mark.parametrize("num_frames", [5, 9, 33])
def test_other_lengths_are_read_right(num_frames: int) -> None:
    world = SpriteWorld("test", 1, num_frames=num_frames)
    for index in range(12):
        clip = world.sample(index)
        assert score(clip.frames, clip.key).joint, clip.key


def test_a_larger_canvas_is_read_right() -> None:
    world = SpriteWorld("test", 2, height=96, width=128)
    wrong = [index for index in range(12) if not score((clip := world.sample(index)).frames, clip.key).joint]
    assert not wrong


def test_pictures_are_judged_by_colour_and_shape() -> None:
    world = SpriteWorld("test", 2, num_frames=1)
    for index in range(20):
        clip = world.sample(index)
        found = score(clip.frames, clip.key)
        assert found.joint and judge(clip.frames).motion is None
        assert not score(clip.frames, _with(clip.key, shape=_other_shape(clip))).joint


def _other_shape(clip: SpriteClip) -> str:
    return "cross" if clip.key.objects[0].shape != "cross" else "square"


def test_the_track_is_found_to_a_fraction_of_a_pixel(degraded: Callable[[Frames, str], Frames]) -> None:
    for clip in _clips(1)[:16]:
        error = np.linalg.norm(judge(clip.frames).centres - clip.tracks.centres[0], axis=1)
        noisy = np.linalg.norm(judge(degraded(clip.frames, "noise")).centres - clip.tracks.centres[0], axis=1)
        assert error.max() < 0.15 and noisy.max() < 0.4


def test_speed_is_read_though_it_is_not_scored() -> None:
    for clip in _clips(1):
        if clip.key.objects[0].speed:
            assert judge(clip.frames).speed == clip.key.objects[0].speed


@pytest.mark.parametrize("tier", [1, 2])
def test_shuffled_captions_score_low(tier: int) -> None:
    clips = _clips(tier)
    joint = [score(clip.frames, clips[(place + 7) % len(clips)].key).joint for place, clip in enumerate(clips)]
    assert np.mean(joint) < 0.06


def test_a_still_video_fails_on_every_moving_key() -> None:
    for clip in (*_clips(1)[:20], *_clips(2)[:20]):
        if clip.key.objects[0].motion in ("still", "appear"):
            continue
        frozen = np.broadcast_to(clip.frames[:1], clip.frames.shape)
        assert not score(frozen, clip.key).motion


def test_other_colours_shapes_and_motions_fail() -> None:
    for clip in _clips(1)[:16]:
        item = clip.key.objects[0]
        colour = next(word for word in COLOURS if word != item.colour)
        motion = "left" if item.motion != "left" else "right"
        for changes, part in (
            ({"colour": colour}, "colour"),
            ({"shape": _other_shape(clip)}, "shape"),
            ({"motion": motion}, "motion"),
        ):
            found = score(clip.frames, _with(clip.key, **changes))
            assert not getattr(found, part) and not found.joint


def test_a_reversed_clip_moves_the_other_way() -> None:
    for clip in _clips(1)[:20]:
        if clip.key.objects[0].motion == "left":
            assert judge(clip.frames[::-1]).motion == "right"
            break
    else:
        pytest.fail("no clip moves left")


def test_shuffled_frames_are_no_known_motion_and_not_smooth() -> None:
    order = np.random.default_rng(0).permutation(17)
    moving = [clip for clip in _clips(1) if clip.key.objects[0].speed == "quick"][:8]
    for clip in moving:
        mixed = judge(clip.frames[order])
        assert mixed.motion != clip.key.objects[0].motion
        assert mixed.acceleration > 20.0 * judge(clip.frames).acceleration


def test_empty_and_crowded_clips_are_not_present(degraded: Callable[[Frames, str], Frames]) -> None:
    empty = np.full((9, 64, 64, 3), 110, np.uint8)
    seen = judge(empty)
    assert not seen.presence and seen.colour is None and np.isnan(seen.centres).all()
    assert not judge(degraded(empty, "noise")).presence
    crowded = empty.copy()
    crowded[:, 8:20, 8:20] = crowded[:, 40:52, 40:52] = COLOURS["red"]
    assert not judge(crowded).presence


def test_half_a_clip_without_the_object_is_not_present() -> None:
    clip = next(clip for clip in _clips(1) if clip.key.objects[0].motion == "still")
    frames = clip.frames.copy()
    frames[6:12] = clip.frames[0, 0, 0]
    assert not judge(frames).presence


def test_two_things_at_once_are_no_known_motion() -> None:
    world = SpriteWorld("validation", 2)
    grow = next(clip for clip in map(world.sample, range(200)) if clip.key.objects[0].motion == "grow")
    moving = np.stack([np.roll(frame, place, axis=1) for place, frame in enumerate(grow.frames)])
    assert judge(moving).motion != "grow"


def test_flicker_is_that_of_the_background() -> None:
    clip = _clips(1)[0]
    assert judge(clip.frames).flicker == 0.0
    flickering = clip.frames.copy()
    flickering[::2] = np.minimum(flickering[::2].astype(int) + 6, 255)
    assert judge(flickering).flicker == pytest.approx(6.0, abs=0.1)


def test_other_layouts_are_refused() -> None:
    with pytest.raises(ShapeError, match="float32"):
        judge(np.zeros((5, 64, 64, 3), np.float32))  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=r"\[64, 64, 3\]"):
        judge(np.zeros((64, 64, 3), np.uint8))
