"""Animated pictures (gif, webp, png) as clips."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vgen.errors import MediaError
from vgen.io.media.codec.demux import check_picture_size
from vgen.io.media.images import as_rgb

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

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
        with open_animation(self.path, self.kind) as picture:
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


@contextmanager
def open_animation(path: Path, kind: str) -> Iterator[Image.Image]:
    """The opened file, its size checked.

    Raises:
        MediaError: too large, or damage that decoding meets inside the `with`.
    """
    import warnings

    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=[kind]) as picture:
                check_picture_size(path, *picture.size)
                yield picture
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        if isinstance(error, MediaError):
            raise
        raise MediaError(f"{path} is damaged: {error}.") from None


def is_animated(path: Path) -> bool:
    """Whether a file is an animated picture that is read as a clip."""
    from PIL import Image

    try:
        with Image.open(path, formats=["GIF", "WEBP", "PNG"]) as picture:
            return bool(getattr(picture, "is_animated", False))
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError):
        return False


def measure_animation(path: Path, kind: str) -> tuple[int, int, int]:
    """(F, H, W) as the header and the list of frames say; nothing is decoded.

    Raises:
        MediaError: damaged.
    """
    with open_animation(path, kind) as picture:
        frames = int(getattr(picture, "n_frames", 1)) - bool(picture.info.get("default_image"))
        return frames, picture.height, picture.width
