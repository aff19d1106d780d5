"""Frame rates: jitter, bursts, freezes, coarse clocks and missing timestamps."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from vgen.errors import MediaError
from vgen.io.media.codec.stream import FootageStream
from vgen.io.media.codec.timing import constant_rate, nominal_rate
from vgen.io.media.video import read_video

Encode = Callable[..., Path]


def _greys(count: int) -> np.ndarray:
    """Frames that say their own number: [F, 64, 64, 3], grey 5 * number; smaller ones get no B-frames."""
    return np.stack([np.full((64, 64, 3), 5 * k, np.uint8) for k in range(count)])


def _numbers(frames: np.ndarray) -> list[int]:
    return np.rint(frames[:, 16, 24, 0] / 5).astype(int).tolist()


def _settle(times: list[float], tick: float = 1e-5, stated: float | None = None):
    return constant_rate(times, tick, nominal_rate(np.diff(times), tick, stated), stated)


def test_jitter_of_a_millisecond_keeps_every_frame(tmp_path: Path, encode_raw: Encode) -> None:
    ticks = [3000 * k + (90 if k % 2 else -90) * (k > 0) for k in range(20)]
    found = read_video(encode_raw(tmp_path / "a.mp4", _greys(20), pts=ticks, time_base=Fraction(1, 90000)))
    assert (_numbers(found.frames), found.frame_rate, found.notes) == (list(range(20)), 30.0, ())


def test_a_burst_and_a_freeze_are_at_the_rate_of_the_burst(tmp_path: Path, encode_raw: Encode) -> None:
    ticks = [*range(10), 40, *range(50, 60)]
    path = encode_raw(tmp_path / "a.mp4", _greys(21), pts=ticks, time_base=Fraction(1, 30))
    found = read_video(path)
    shown = [max(k for k, tick in enumerate(ticks) if tick <= instant) for instant in range(60)]
    assert (_numbers(found.frames), found.frame_rate) == (shown, 30.0)
    assert found.notes == (
        "The frame rate varies between 0.9677 and 30 frames per second; the frames were put at 30 per second "
        "(0 of 21 dropped, 39 doubled).",
    )
    part = read_video(path, max_frames=20)
    assert (_numbers(part.frames), part.frame_rate) == (shown[:20], 30.0), "the first frames settle nothing else"


def test_frames_at_the_same_instant_are_dropped_and_said(tmp_path: Path, encode_raw: Encode) -> None:
    ticks = [0, 10, 20, 22, 24, *range(30, 240, 10)]  # two frames too many near 20
    path = encode_raw(tmp_path / "a.mp4", _greys(26), pts=ticks, time_base=Fraction(1, 100))
    found = read_video(path)
    assert (_numbers(found.frames), found.frame_rate) == ([0, 1, 2, *range(5, 26)], 10.0), "the nearest is shown"
    assert "(2 of 26 dropped, 0 doubled)" in found.notes[0]
    assert len(read_video(path, max_frames=8).frames) == 8, "what is dropped is made up for by later frames"


@pytest.mark.parametrize("rate", [24000 / 1001, 24, 25, 30000 / 1001, 30, 60000 / 1001, 60, 7.5])
@pytest.mark.parametrize("tick", [1e-2, 1e-3, 1 / 90000])
def test_constant_rates_through_coarse_clocks(rate: float, tick: float) -> None:
    times = [round(k / rate / tick) * tick for k in range(300)]
    settled = _settle(times, tick)
    assert settled.keeps_all and settled.notes() == ()
    assert settled.frames_per_second == pytest.approx(rate, rel=1e-4 if tick < 1e-2 else 1e-3)


@pytest.mark.parametrize("first", [-2.0, -0.04, 0.0, 3600.0])
def test_where_the_timestamps_begin_does_not_matter(first: float) -> None:
    settled = _settle([first + k / 25 for k in range(20)])
    assert settled.keeps_all and settled.frames_per_second == 25.0


def test_a_first_frame_that_is_late_moves_no_other() -> None:
    late = [0.014, *(k / 30 + (0.003 if k % 2 else -0.003) for k in range(1, 20))]
    settled = _settle(late, stated=30.0)
    assert settled.keeps_all and settled.frames_per_second == 30.0
    assert "every one kept, moved by at most 14 ms" in settled.notes()[0]


def test_a_phone_that_slows_down_in_the_dark() -> None:
    gaps = [1 / 30] * 60 + [1 / 24] * 60 + [1 / 30] * 60
    settled = _settle([0.0, *np.cumsum(gaps)], stated=27.7)
    assert settled.frames_per_second == 30.0
    assert "(0 of 181 dropped, 15 doubled)" in settled.notes()[0]


def test_a_screen_recording() -> None:
    rng = np.random.default_rng(0)
    times = np.cumsum(rng.choice([1 / 30, 1 / 30, 2 / 30, 10 / 30, 1.0], 200))
    settled = _settle(times.tolist(), stated=200 / times[-1])
    assert settled.frames_per_second == 30.0
    assert settled.num_frames == round((times[-1] - times[0]) * 30) + 1
    assert "(0 of 200 dropped" in settled.notes()[0]


def test_timestamps_that_are_all_the_same_say_nothing() -> None:
    settled = _settle([0.0] * 5, stated=12.0)
    assert settled.keeps_all and settled.frames_per_second == 12.0


def test_timestamps_that_lie_absurdly_far_apart(tmp_path: Path, encode_raw: Encode) -> None:
    path = encode_raw(tmp_path / "a.mp4", _greys(4), pts=[0, 1, 2, 10**8], time_base=Fraction(1, 1000))
    with pytest.raises(MediaError, match=r"a\.mp4 would give .* frames"):
        read_video(path)
    with pytest.raises(MediaError, match=r"a\.mp4 would give .* frames"):
        _ = _through(path).timeline


def _through(path: Path) -> FootageStream:
    stream = FootageStream(path)
    for _ in stream:
        pass
    return stream


@pytest.mark.parametrize(("codec", "options"), [("libx264", {"bf": "2"}), ("mpeg4", {"bf": "2"})])
def test_avi_gives_frames_in_the_order_of_decoding(
    tmp_path: Path, encode_raw: Encode, codec: str, options: dict[str, str]
) -> None:
    path = encode_raw(tmp_path / "a.avi", _greys(48)[::4], codec=codec, options=options)
    found = read_video(path)
    assert (found.frame_rate, found.notes) == (8.0, ())
    for frames in (found.frames, np.stack(list(FootageStream(path)))):
        assert frames[:, 16, 24, 0] == pytest.approx(20 * np.arange(12), abs=6)


def test_timestamps_that_start_again_are_ignored_and_said(tmp_path: Path, encode_raw: Encode) -> None:
    path = tmp_path / "a.webm"  # each key frame starts a cluster
    seconds = {"pts": [1000 * k for k in range(30)], "time_base": Fraction(1, 1000)}
    encode_raw(path, _greys(30), codec="libvpx-vp9", context={"gop_size": 6}, **seconds)
    content = bytearray(path.read_bytes().replace(b"DURATION", b"ANYTHING"))
    clusters = [place for place in range(len(content)) if content[place : place + 4] == b"\x1f\x43\xb6\x75"]
    assert len(clusters) > 2
    place = content.index(b"\xe7", clusters[-1]) + 1
    length = content[place] & 0x7F
    content[place + 1 : place + 1 + length] = (5_250).to_bytes(length, "big")
    path.write_bytes(content)
    found = read_video(path)
    assert (_numbers(found.frames), found.frame_rate) == (list(range(30)), 1.0)
    assert any("The timestamps run backwards after frame" in note for note in found.notes)


def test_timestamps_that_are_missing_are_ignored_and_said(tmp_path: Path, encode_raw: Encode) -> None:
    stream = _through(encode_raw(tmp_path / "a.mp4", _greys(9), time_base=Fraction(1, 25)))
    stream._times[3] = None
    settled, notes = stream.settle()
    assert (settled.frames_per_second, settled.keeps_all) == (25.0, True)
    assert notes == ("The timestamps of 1 frame are missing; all were ignored.",)


def test_training_reads_the_same_frames(tmp_path: Path, encode_raw: Encode) -> None:
    ticks = [*range(10), 20, *range(24, 30)]
    path = encode_raw(tmp_path / "a.mp4", _greys(17), pts=ticks, time_base=Fraction(1, 25))
    stream = FootageStream(path)
    pictures = np.stack(list(stream))
    timeline, whole = stream.timeline, read_video(path)
    chosen = pictures if timeline.chosen is None else pictures[list(timeline.chosen)]
    assert np.array_equal(chosen, whole.frames)
    assert (timeline.frame_rate, timeline.notes, timeline.num_decoded) == (25.0, whole.notes, 17)
