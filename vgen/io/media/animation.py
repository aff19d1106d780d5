"""Animated pictures (gif, webp, png) as clips, and clips as gif."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from vgen.io.media.images import FORMATS, as_rgb, open_picture

if TYPE_CHECKING:
    import numpy as np

    from vgen.io.media.enlarged import Frames

ANIMATED = ("GIF", "WEBP", "PNG")
"""Formats of Pillow whose animations are read."""

SHORTEST_DELAY, SHOWN_DELAY = 10, 100
"""Milliseconds: a delay of at most the first is shown for the second, as browsers do."""


class Animation:
    """The frames of an animated picture, each whole.

    Args:
        path: file that `containers.identify` found to be one.
        kind: name of Pillow's format.
        background: RGB behind transparent places.
    Attributes:
        times: seconds at which each frame so far is first shown.
        duration: seconds, of the frames so far.
        notes: what was changed, one sentence each.
    """

    def __init__(self, path: Path, kind: str, background: tuple[int, int, int]) -> None:
        self.path, self.kind, self.background = path, kind, background
        self.times: list[float | None] = []
        self.duration = 0.0
        self.notes: list[str] = []

    def __iter__(self) -> Iterator[np.ndarray]:
        """uint8 [H, W, 3] each."""
        import numpy as np
        from PIL import ImageSequence

        self.times.clear()
        self.notes.clear()
        self.duration = 0.0
        with open_picture(self.path, (self.kind,), load=False) as picture:
            for place, frame in enumerate(ImageSequence.Iterator(picture)):
                if not place and picture.info.get("default_image"):
                    continue  # an animated png's picture for viewers that show no animation
                pixels = np.asarray(as_rgb(frame, self.background, str(self.path)))
                delay = frame.info.get("duration", 0)
                if delay <= SHORTEST_DELAY:
                    if not self.notes:
                        self.notes.append(
                            f"Delays of {SHORTEST_DELAY} ms or less last {SHOWN_DELAY} ms, as in browsers."
                        )
                    delay = SHOWN_DELAY
                self.times.append(self.duration)
                self.duration += delay / 1000
                yield pixels


def is_animated(path: Path) -> bool | None:
    """Whether a file is an animated picture that is read as a clip; None where it is not a picture.

    A damaged picture counts as a still one: reading it says what is wrong.
    """
    from PIL import Image

    try:
        with Image.open(path, formats=FORMATS) as picture:
            return picture.format in ANIMATED and bool(getattr(picture, "is_animated", False))
    except Image.UnidentifiedImageError:
        return None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError):
        return False


def measure_animation(path: Path, kind: str) -> tuple[int, int, int]:
    """(F, H, W) as the header and the list of frames say; nothing is decoded.

    Raises:
        MediaError: damaged.
    """
    with open_picture(path, (kind,), load=False) as picture:
        frames = int(getattr(picture, "n_frames", 1)) - bool(picture.info.get("default_image"))
        return frames, picture.height, picture.width


def write_gif(stream: BinaryIO, frames: Frames, frame_rate: float, comment: str | None) -> None:
    """Write a looping GIF, every frame whole and with its own palette, so that none is merged with the one before it.

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
