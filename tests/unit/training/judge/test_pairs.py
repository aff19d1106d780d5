"""The judge on two objects: right on rendered clips, clean and degraded, and wrong on wrong ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vgen.training.data.sprites import AnswerKey, SpriteClip, SpriteWorld
from vgen.training.data.sprites.keys import RELATIONS
from vgen.training.data.sprites.palette import COLOURS
from vgen.training.data.sprites.render import cover, paint
from vgen.training.judge.judge import centres_of, judge_pair, score

Frames = NDArray[np.uint8]


@cache
def _clips(count: int, **options: Any) -> tuple[SpriteClip, ...]:
    world = SpriteWorld("test", 3, **options)
    return tuple(world.sample(index) for index in range(count))


def _of(relation: str, count: int = 6) -> list[SpriteClip]:
    found = [clip for clip in _clips(60) if clip.key.relation == relation][:count]
    assert len(found) == count
    return found


def _with(key: AnswerKey, number: int, **changes: object) -> AnswerKey:
    objects = list(key.objects)
    objects[number] = replace(objects[number], **changes)  # type: ignore[arg-type]
    return replace(key, objects=tuple(objects))


def _swapped(key: AnswerKey, *names: str) -> AnswerKey:
    """The key with some attributes of its two objects exchanged."""
    one, other = key.objects
    return replace(
        key,
        objects=(
            replace(one, **{name: getattr(other, name) for name in names}),
            replace(other, **{name: getattr(one, name) for name in names}),
        ),
    )


@pytest.mark.slow
def test_rendered_clips_are_read_right() -> None:
    wrong = [clip.key for clip in _clips(200) if not score(clip.frames, clip.key).joint]
    assert len(wrong) <= 6, wrong


@pytest.mark.parametrize("way", ["noise", "blur"])
def test_degraded_clips_are_read_right(way: str, degraded: Callable[[Frames, str], Frames]) -> None:
    wrong = [clip.key for clip in _clips(40) if not score(degraded(clip.frames, way), clip.key).joint]
    assert len(wrong) <= 1, wrong


@pytest.mark.parametrize("num_frames", [5, 9, 33])
def test_other_lengths_are_read_right(num_frames: int) -> None:
    wrong = [clip.key for clip in _clips(20, num_frames=num_frames) if not score(clip.frames, clip.key).joint]
    assert not wrong


def test_a_larger_canvas_is_read_right() -> None:
    wrong = [clip.key for clip in _clips(8, height=128, width=160) if not score(clip.frames, clip.key).joint]
    assert not wrong


def test_pictures_are_judged_by_colours_shapes_and_places() -> None:
    for clip in _clips(30, num_frames=1):
        found = score(clip.frames, clip.key)
        assert found.joint and found.motion
        other = "cross" if clip.key.objects[1].shape != "cross" else "square"
        assert not score(clip.frames, _with(clip.key, 1, shape=other)).shape
        if clip.key.relation is not None:
            assert not score(clip.frames, replace(clip.key, objects=clip.key.objects[::-1])).relation


def test_swapped_colours_score_low() -> None:
    """Clips repainted, and keys exchanged."""
    passed = []
    for clip in _clips(40):
        frames = clip.frames.copy()
        for number, item in enumerate(clip.key.objects[::-1]):
            frames[clip.object_masks[number]] = COLOURS[item.colour]
        passed += [score(frames, clip.key).joint, score(clip.frames, _swapped(clip.key, "colour")).joint]
        assert score(frames, clip.key).presence
    assert np.mean(passed) < 0.02


def test_swapped_motions_score_low() -> None:
    clips = [clip for clip in _clips(40) if clip.key.objects[0].motion != clip.key.objects[1].motion]
    clips += [clip for clip in _clips(40) if clip.key.relation == "collides with"]
    passed = [score(clip.frames, _swapped(clip.key, "motion", "phases")).joint for clip in clips]
    assert len(passed) > 30 and not any(passed)


def test_shuffled_captions_score_low() -> None:
    clips = _clips(40)
    passed = [score(clip.frames, clips[(place + 7) % len(clips)].key).joint for place, clip in enumerate(clips)]
    assert np.mean(passed) < 0.04


def test_a_still_first_frame_scores_low() -> None:
    clips = _clips(40)
    passed = [score(np.repeat(clip.frames[:1], 17, axis=0), clip.key).joint for clip in clips]
    resting = [all(item.motion == "still" for item in clip.key.objects) for clip in clips]
    assert passed == resting and np.mean(passed) < 0.1


def test_each_part_of_either_object_can_fail_alone() -> None:
    for clip in _clips(8):
        for number, item in enumerate(clip.key.objects):
            taken = [entry.colour for entry in clip.key.objects]
            changes = {
                "colour": next(word for word in COLOURS if word not in taken),
                "shape": "cross" if item.shape != "cross" else "square",
                "motion": "bounce",
            }
            for part, value in changes.items():
                found = score(clip.frames, _with(clip.key, number, **{part: value}))
                assert not found.joint and not getattr(found, part), (part, clip.key)
                assert sum(getattr(found, name) for name in (*changes, "relation")) == 3


def test_relations_are_told_apart() -> None:
    for relation in RELATIONS:
        for clip in _of(relation):
            others = [word for word in ("collides with", "behind") if word != relation]
            assert score(clip.frames, clip.key).relation
            assert not any(score(clip.frames, replace(clip.key, relation=word)).relation for word in others)
            if relation != "collides with":  # which is the same both ways round
                turned = replace(clip.key, objects=clip.key.objects[::-1])
                assert not score(clip.frames, turned).relation


def test_in_front_is_not_behind() -> None:
    for clip in _of("behind"):
        item, frames = clip.key.objects[0], clip.frames.copy()
        centres, radii, angles, alphas = (values[0] for values in clip.tracks)
        colours = np.tile(np.array(COLOURS[item.colour], np.float32), (17, 1))
        paint(frames, cover(item.shape, centres, radii, angles, 64, 64), colours, alphas)
        found = score(frames, clip.key)
        assert found.colour and found.shape and found.motion and not found.relation


def test_objects_that_stop_short_of_each_other_do_not_collide() -> None:
    for clip in _of("collides with"):
        meeting = int(clip.events[0].time)
        frames = np.concatenate([clip.frames[: meeting - 2], clip.frames[meeting + 3 :]])
        assert not score(frames, clip.key).relation


def test_tracks_are_found_to_a_fraction_of_a_pixel() -> None:
    seen = 0
    for clip in _clips(40):
        found = centres_of(clip.frames, clip.key)
        error = np.linalg.norm(found - clip.tracks.centres.transpose(1, 0, 2), axis=-1)
        seen += np.isfinite(error).sum()
        assert np.nanmax(error) < 0.75 and np.nanmean(error) < 0.1
    assert seen > 0.85 * 40 * 17 * 2


def test_one_object_three_objects_and_none_are_not_two(degraded: Callable[[Frames, str], Frames]) -> None:
    clip = _of("left of", 1)[0]
    alone = SpriteWorld("test", 1).sample(0)
    empty = np.full((9, 64, 64, 3), 110, np.uint8)
    for frames in (alone.frames, empty, degraded(empty, "noise")):
        found = score(frames, clip.key)
        assert judge_pair(frames) is None and not found.presence and not found.relation
        assert np.isnan(centres_of(frames, clip.key)).all()
    crowded = clip.frames.copy()
    free = [(r, c) for r in (4, 46) for c in (4, 46) if not clip.masks[:, r : r + 14, c : c + 14].any()]
    assert free
    row, column = free[0]
    crowded[:, row : row + 14, column : column + 14] = COLOURS[clip.key.objects[0].colour]
    assert not score(crowded, clip.key).presence


def test_an_object_that_goes_away_is_not_present() -> None:
    clip = _of("above", 1)[0]
    frames = clip.frames.copy()
    background = SpriteWorld("test", 3).sample(clip.index).frames[0, 0, 0]
    for frame in range(5, 12):
        frames[frame][clip.object_masks[1, frame]] = background
    assert not score(frames, clip.key).presence
