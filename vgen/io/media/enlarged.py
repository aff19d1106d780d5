"""Clips written larger than they are, each pixel a square of pixels, and brought back when they are read.

A clip of 64 x 64 is too small to be looked at. Enlarged, it also loses nothing to the colours of 4:2:0 (H.264, VP9),
which are stored at half of the size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np

    from vgen.io.media.take import FramesOnDisk

MAX_SCALE = 16


class Enlarged:
    """Frames that are enlarged one by one, as they are asked for.

    Args:
        frames: uint8 [F, H, W, 3], in memory or on disk.
        scale: 1 or more.
    Attributes:
        shape, dtype, size, nbytes: as of an array [F, H * scale, W * scale, 3].
    """

    def __init__(self, frames: np.ndarray | FramesOnDisk, scale: int) -> None:
        self._frames, self._scale = frames, scale
        count, height, width, channels = frames.shape
        self.shape = (count, height * scale, width * scale, channels)
        self.dtype = frames.dtype
        self.size = frames.size * scale**2
        self.nbytes = frames.nbytes * scale**2

    def __len__(self) -> int:
        return len(self._frames)

    def __iter__(self) -> Iterator[np.ndarray]:
        for frame in self._frames:
            yield frame.repeat(self._scale, axis=0).repeat(self._scale, axis=1)


class WrittenSize(NamedTuple):
    """What the request in a file says about its pictures: how much they were enlarged, and from which size."""

    scale: int
    height: int
    width: int

    @classmethod
    def read(cls, metadata: Mapping[str, Any] | None) -> WrittenSize | None:
        """From the metadata of an output; None where they were not enlarged."""
        if metadata is None or "model_hash" not in metadata:
            return None
        found = [metadata.get(name) for name in cls._fields]
        if not all(isinstance(value, int) and not isinstance(value, bool) for value in found):
            return None
        scale, height, width = (int(value) for value in found if value is not None)
        return cls(scale, height, width) if 1 < scale <= MAX_SCALE and height > 0 and width > 0 else None

    def undo(self, picture: np.ndarray) -> np.ndarray:
        """uint8 [H * scale, W * scale, C] as [H, W, C]; a picture of another size, scaled since, is left as it is."""
        if picture.shape[:2] != (self.height * self.scale, self.width * self.scale):
            return picture
        return shrink(picture, self.scale)


def shrink(picture: np.ndarray, scale: int) -> np.ndarray:
    """The mean of each square of pixels, uint8 [H * scale, W * scale, ...] as [H, W, ...].

    Of lossless files it is exact. 4:2:0 mixes the colours of two squares at an odd border, which is then left out.
    """
    import numpy as np

    height, width = picture.shape[0] // scale, picture.shape[1] // scale
    squares = picture.reshape(height, scale, width, scale, *picture.shape[2:])
    if scale % 2 and scale > 1:
        squares = squares[:, 1:-1, :, 1:-1]
    return np.rint(squares.mean(axis=(1, 3))).astype(np.uint8)


if TYPE_CHECKING:
    Frames = np.ndarray | FramesOnDisk | Enlarged
    """uint8 [F, H, W, 3] that can be written."""
