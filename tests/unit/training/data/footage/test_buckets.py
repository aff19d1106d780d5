"""Clips to samples: sizes, lengths and rates that fit the model, and a reason where none does."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vgen.errors import RequestError, ShapeError
from vgen.training.data.footage.buckets import Geometry, choose_size, default_lengths, plan_samples
from vgen.training.data.footage.commands import shares
from vgen.training.data.footage.records import Clip
from vgen.types import Strides

STRIDES = Strides(4, 8, 8)
GEOMETRY = Geometry(STRIDES, (1, 5, 9, 17), 64 * 64, frame_rate=8.0)
CLIP = Clip("a", "/a.mp4", "0" * 64, "video", 10, 40, 16.0, (0, 0, 480, 832))


def _plan(clip=CLIP, **changes):
    return plan_samples([clip], replace(GEOMETRY, **changes))


def test_lengths_follow_the_stride() -> None:
    assert default_lengths(17, 4) == (1, 5, 9, 17)
    assert default_lengths(161, 8) == (1, 9, 17, 41, 81, 161)
    assert default_lengths(1, 8) == (1,)


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(64, 64, (64, 64)), (480, 832, (48, 80)), (832, 480, (80, 48)), (100, 1000, (16, 160))],
)
def test_sizes_follow_the_aspect_ratio_within_the_area(height, width, size) -> None:
    assert choose_size(height, width, GEOMETRY) == size


def test_frames_are_those_shown_at_the_new_rate() -> None:
    samples, dropped = _plan()
    assert not dropped
    # 40 frames at 16 a second are 20 at 8: one window of 17
    assert [sample.frames for sample in samples] == [tuple(range(10, 44, 2))]
    assert samples[0].bucket.num_frames == 17 and samples[0].bucket.frame_rate == 8.0


def test_frames_at_the_new_rate_are_the_nearest() -> None:
    samples, _ = _plan(replace(CLIP, start=0, num_frames=64, frame_rate=30.0))
    assert [sample.frames for sample in samples] == [(0, 4, 8, 11, 15, 19, 23, 26, 30, 34, 38, 41, 45, 49, 53, 56, 60)]


def test_slow_footage_keeps_its_rate_and_windows_do_not_overlap() -> None:
    samples, _ = _plan(replace(CLIP, frame_rate=6.0))
    assert [sample.frames for sample in samples] == [tuple(range(10, 27)), tuple(range(33, 50))]
    assert {sample.bucket.frame_rate for sample in samples} == {6.0}
    assert len({sample.key for sample in samples}) == 2
    one, _ = _plan(replace(CLIP, frame_rate=6.0), windows=1)
    assert [sample.frames for sample in one] == [tuple(range(10, 27))]


def test_the_key_changes_with_what_is_seen_and_with_nothing_else() -> None:
    key = _plan()[0][0].key
    assert _plan(replace(CLIP, id="b", source="/elsewhere.mp4"))[0][0].key == key
    for other in (
        replace(CLIP, source_hash="1" * 64),
        replace(CLIP, crop=(0, 0, 480, 800)),
        replace(CLIP, start=11),
    ):
        assert _plan(other)[0][0].key != key


def test_every_dropped_clip_has_a_reason() -> None:
    samples, dropped = _plan(replace(CLIP, num_frames=7))
    assert not samples and dropped[0].reason == "too short: 4 frames at 8 per second, and at least 5 are needed"
    samples, dropped = _plan(replace(CLIP, crop=(0, 0, 40, 64)))
    assert not samples and dropped[0].reason.startswith("too small: 64 x 40 pixels for a size of")
    assert _plan(replace(CLIP, crop=(0, 0, 40, 64)), allow_upscale=True)[0]


def test_pictures_are_samples_of_one_frame() -> None:
    samples, _ = _plan(replace(CLIP, kind="image", num_frames=1, frame_rate=1.0))
    assert samples[0].bucket.num_frames == 1 and samples[0].bucket.frame_rate == 8.0


def test_what_the_model_cannot_have_is_refused() -> None:
    with pytest.raises(ShapeError, match="num_frames=16"):
        _plan(lengths=(16,))
    with pytest.raises(ShapeError, match="width=60"):
        _plan(sizes=((64, 60),))
    with pytest.raises(RequestError, match="less than one token"):
        _plan(area=10)


def test_tables_of_shares() -> None:
    assert shares("weights", "good=2, more/bad=0.5") == {"good": 2.0, "more/bad": 0.5}
    for wrong in ("good", "good=x", "good=-1", "=1"):
        with pytest.raises(RequestError, match="weights"):
            shares("weights", wrong)
