"""Animated GIF: every frame whole, with its own palette, so that no frame is merged with the one before it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from vgen.io.media.animation import open_animation
from vgen.io.media.images import comment_of

if TYPE_CHECKING:
    from vgen.io.media.enlarged import Frames

MAX_GIF_RATE = 50.0
"""GIF counts hundredths of a second, and players slow down delays below two of them."""


def read_gif_comment(path: Path) -> str | None:
    """The comment of a GIF, or None.

    Raises:
        MediaError: damaged.
    """
    with open_animation(path, "GIF") as picture:
        return comment_of(picture)


def write_gif(stream: BinaryIO, frames: Frames, frame_rate: float, comment: str | None) -> None:
    """Write a looping GIF.

    Args:
        stream: open for writing bytes.
        frames: uint8 [F, H, W, 3].
        frame_rate: frames per second; delays are rounded so that the error never adds up.
        comment: ASCII text kept in the file.
    """
    from PIL import GifImagePlugin, Image

    height, width = frames.shape[1:3]
    stream.write(b"GIF89a" + width.to_bytes(2, "little") + height.to_bytes(2, "little") + b"\x70\x00\x00")
    stream.write(b"\x21\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00")
    if comment is not None:
        data = comment.encode("ascii")
        pieces = (data[i : i + 255] for i in range(0, len(data), 255))
        stream.write(b"\x21\xfe" + b"".join(bytes([len(piece)]) + piece for piece in pieces) + b"\x00")
    ends = [round(100 * k / frame_rate) for k in range(len(frames) + 1)]
    for frame, (start, end) in zip(frames, pairwise(ends), strict=True):
        picture = Image.fromarray(frame).quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        for block in GifImagePlugin.getdata(picture, duration=10 * (end - start), include_color_table=True):
            stream.write(block)
    stream.write(b"\x3b")
