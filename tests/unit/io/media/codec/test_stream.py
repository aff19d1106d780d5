"""Going through a file frame by frame gives what reading it whole gives."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from vgen.errors import MediaError
from vgen.io.media.codec.stream import FootageStream
from vgen.io.media.video import read_video, write_video


def _streamed(path):
    stream = FootageStream(path)
    pictures = list(stream)
    timeline = stream.timeline
    chosen = pictures if timeline.chosen is None else [pictures[index] for index in timeline.chosen]
    return np.stack(chosen), timeline


@pytest.mark.parametrize("pts", [None, [0, 1, 2, 5, 6, 7, 8, 12, 13]], ids=["constant", "variable"])
def test_the_same_frames_rate_and_notes(tmp_path, encode_raw, clip, pts) -> None:
    path = encode_raw(tmp_path / "a.mp4", clip, pts=pts, time_base=Fraction(1, 8))
    whole = read_video(path)
    frames, timeline = _streamed(path)
    np.testing.assert_array_equal(frames, whole.frames)
    assert (timeline.frame_rate, timeline.notes) == (whole.frame_rate, whole.notes)
    assert timeline.num_decoded == 9 and (timeline.chosen is None) == (pts is None)


def test_a_damaged_file_is_refused(tmp_path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (9, 64, 64, 3), dtype=np.uint8)
    path = write_video(tmp_path / "clip.mp4", noise, 8.0)
    content = bytearray(path.read_bytes())
    start = content.find(b"mdat") + 4
    for position in np.random.default_rng(1).integers(start + 2000, len(content), 40):
        content[position] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(MediaError, match=r"clip\.mp4 is damaged"):
        list(FootageStream(path))
