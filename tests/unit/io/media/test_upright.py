"""What cameras do to frames: turned pictures, uneven clocks, deep and wide colours."""

from __future__ import annotations

import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from vgen.errors import MediaError
from vgen.io.media.video import read_video, write_video

Encode = Callable[..., Path]


def _quarters() -> np.ndarray:
    """[1, 32, 48, 3]: red, green / blue, white."""
    frame = np.zeros((1, 32, 48, 3), np.uint8)
    frame[0, :16, :24], frame[0, :16, 24:] = (220, 20, 20), (20, 220, 20)
    frame[0, 16:, :24], frame[0, 16:, 24:] = (20, 20, 220), (240, 240, 240)
    return frame


def _set_matrix(path: Path, a: int, b: int, c: int, d: int) -> None:
    """Overwrite the display matrix in the track header of an mp4."""
    content = bytearray(path.read_bytes())
    start = content.find(b"tkhd") + 4 + 40
    one = 1 << 16
    content[start : start + 36] = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("matrix", "turned"),
    [
        ((1, 0, 0, 1), lambda f: f),
        ((0, 1, -1, 0), lambda f: np.rot90(f, -1)),
        ((-1, 0, 0, -1), lambda f: np.rot90(f, 2)),
        ((0, -1, 1, 0), lambda f: np.rot90(f, 1)),
        ((-1, 0, 0, 1), lambda f: f[:, ::-1]),
        ((1, 0, 0, -1), lambda f: f[::-1]),
        ((0, 1, 1, 0), lambda f: f.transpose(1, 0, 2)),
        ((0, -1, -1, 0), lambda f: f.transpose(1, 0, 2)[::-1, ::-1]),
    ],
)
def test_rotation_is_applied(
    tmp_path: Path, matrix: tuple[int, ...], turned: Callable[[np.ndarray], np.ndarray]
) -> None:
    path = write_video(tmp_path / "clip.mp4", np.repeat(_quarters(), 3, axis=0), 8.0)
    _set_matrix(path, *matrix)
    found = read_video(path)
    expected = turned(_quarters()[0])
    assert found.frames.shape[1:] == expected.shape
    centres = [(row, column) for row in (0.25, 0.75) for column in (0.25, 0.75)]
    for row, column in centres:
        place = int(row * expected.shape[0]), int(column * expected.shape[1])
        assert np.abs(found.frames[0][place].astype(int) - expected[place]).max() < 12
    assert bool(found.notes) == (matrix != (1, 0, 0, 1))


@pytest.mark.parametrize(("fields", "kind"), [({"color_trc": 16}, "PQ"), ({"color_trc": 18}, "HLG")])
def test_hdr_is_refused(
    tmp_path: Path, clip: np.ndarray, encode_raw: Encode, fields: dict[str, int], kind: str
) -> None:
    context = {**fields, "color_primaries": 9, "colorspace": 9}
    path = encode_raw(tmp_path / "clip.mp4", clip, context=context)
    with pytest.raises(MediaError, match=rf"high dynamic range.*{kind}.*SDR"):
        read_video(path)


def test_ten_bits_keep_their_tone(tmp_path: Path, clip: np.ndarray, encode_raw: Encode) -> None:
    path = encode_raw(tmp_path / "clip.mp4", clip, pix_fmt="yuv420p10le")
    found = read_video(path)
    assert found.notes == ("10-bit colour was reduced to 8 bits.",)
    assert np.abs(found.frames[0, 11:14, 3:9].astype(int) - (230, 40, 30)).max() < 16


def test_pixels_become_square(tmp_path: Path, clip: np.ndarray, encode_raw: Encode) -> None:
    path = encode_raw(tmp_path / "clip.mp4", clip, context={"sample_aspect_ratio": Fraction(2, 1)})
    found = read_video(path)
    assert found.frames.shape == (9, 32, 96, 3)
    assert found.notes == ("Pixels 2 as wide as high were made square.",)


def test_an_edit_list_is_followed(tmp_path: Path) -> None:
    """A clip whose first frames were cut off by a phone: they are still in the file, and never shown."""
    frames = np.stack([np.full((32, 48, 3), 20 * k, np.uint8) for k in range(12)])
    path = write_video(tmp_path / "clip.mp4", frames, 8.0)
    content = bytearray(path.read_bytes())
    place = content.find(b"elst") + 12
    duration, start = struct.unpack(">Ii", content[place : place + 8])
    content[place : place + 8] = struct.pack(">Ii", duration - 375, start + 3 * 2048)
    path.write_bytes(content)
    found = read_video(path)
    assert found.frame_rate == 8.0
    assert np.abs(found.frames[:, 0, 0, 0].astype(int) - 20 * np.arange(3, 12)).max() <= 2
