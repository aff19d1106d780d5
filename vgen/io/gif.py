"""Animated GIF: every frame whole, with its own palette, so that no frame is merged with the one before it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from vgen.errors import MediaError
from vgen.io.demux import check_picture_size
from vgen.io.limits import frame_limit
from vgen.io.timing import TimedFrames

if TYPE_CHECKING:
    import numpy as np

    from vgen.io.take import FramesOnDisk

MAX_GIF_RATE = 50.0
"""GIF counts hundredths of a second, and players slow down delays below two of them."""


def read_gif(path: Path, max_frames: int | None) -> TimedFrames:
    """Decode a GIF; transparent places become white.

    Args:
        path: file that `containers.identify` found to be a GIF.
        max_frames: read only this many frames from the start.
    Raises:
        MediaError: damaged or too large.
    """
    import numpy as np
    from PIL import Image, ImageSequence

    from vgen.io.images import as_rgb

    frames: list[np.ndarray] = []
    times, now = [], 0.0
    try:
        with Image.open(path, formats=["GIF"]) as picture:
            check_picture_size(path, *picture.size)
            limit = frame_limit(path, *picture.size, max_frames, 0)
            for frame in ImageSequence.Iterator(picture):
                if len(frames) == limit:
                    if max_frames is not None:
                        break
                    raise MediaError(f"{path} has more than {limit:,} frames, the most that are read at once.")
                frames.append(np.asarray(as_rgb(frame)))
                times.append(now)
                now += max(frame.info.get("duration", 0), 10) / 1000
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, MediaError):
            raise
        raise MediaError(f"{path} is damaged: {error}.") from None
    rate = len(frames) / now if len(frames) == 1 and now else None
    return TimedFrames(frames, times, tick=0.01, stated_rate=rate)


def measure_gif(path: Path) -> tuple[int, int, int]:
    """(F, H, W) of a GIF; every frame is decoded, and none kept.

    Raises:
        MediaError: damaged.
    """
    from PIL import Image, ImageSequence

    try:
        with Image.open(path, formats=["GIF"]) as picture:
            sizes = []
            for frame in ImageSequence.Iterator(picture):
                frame.load()
                sizes.append(frame.size)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise MediaError(f"{path} is damaged: {error}.") from None
    return len(sizes), sizes[0][1], sizes[0][0]


def read_gif_comment(path: Path) -> str | None:
    """The comment of a GIF, or None."""
    from PIL import Image

    try:
        with Image.open(path, formats=["GIF"]) as picture:
            comment = picture.info.get("comment")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise MediaError(f"{path} is damaged: {error}.") from None
    return comment.decode("latin-1") if isinstance(comment, bytes) else comment


def write_gif(stream: BinaryIO, frames: np.ndarray | FramesOnDisk, frame_rate: float, comment: str | None) -> None:
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
