"""Masks: one rule for how white a picture is, and reading a mask for a clip."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vgen.errors import MediaError
from vgen.io.media.animation import is_animated
from vgen.io.media.codec.containers import local_file
from vgen.io.media.codec.read import read_video
from vgen.io.media.images import eight_bits, open_picture, upright

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image


def mask_values(picture: Image.Image, name: str = "the mask") -> np.ndarray:
    """How white a picture is: its lightness times its alpha, so that what is transparent counts as black.

    The one rule for masks of commands, of Python and of footage. Colour profiles are ignored: a mask holds numbers.

    Args:
        picture: any size and mode.
        name: what errors call it.
    Returns:
        float32 [H, W] in [0, 1], upright; opaque white is exactly 1.
    Raises:
        MediaError: damaged, or pixels whose range is not known, as `images.as_rgb`.
    """
    import numpy as np

    found = eight_bits(upright(picture, name), name)
    grey = np.asarray(found.convert("L"), np.float32)
    if found.mode in ("RGBA", "LA"):
        grey = grey * (np.asarray(found.getchannel("A"), np.float32) / np.float32(255))
    return grey / np.float32(255)


class MaskClip(NamedTuple):
    """A mask for the frames of a clip.

    Attributes:
        white: uint8 [F, H, W], 255 = white; F is 1 for a picture, which holds for every frame.
        is_picture: whether it is one.
        notes: what was changed on the way in, one sentence each.
        num_in_file: frames that the file has.
    """

    white: np.ndarray
    is_picture: bool
    notes: tuple[str, ...] = ()
    num_in_file: int = 1


def read_mask_file(path: str | Path, max_frames: int | None = None) -> MaskClip:
    """Read a mask of any kind that pictures and videos have, distinguished by content: `mask_values` of each frame.

    Args:
        path: a picture, a video, an animated picture, or a folder of png frames.
        max_frames: read only this many frames from the start.
    Raises:
        MediaError: missing, neither a picture nor a video, damaged, or nothing of it is white.
    """
    import numpy as np
    from PIL import Image

    def white(picture: Image.Image) -> np.ndarray:
        return np.rint(255 * mask_values(picture, str(path))).astype(np.uint8)

    if not local_file(path, "mask").is_dir() and is_animated(Path(path)) is False:
        with open_picture(path) as picture:
            found = MaskClip(white(picture)[None], is_picture=True)
    else:
        clip = read_video(path, max_frames, fit=lambda pixels: white(Image.fromarray(pixels)), background=(0, 0, 0))
        found = MaskClip(clip.frames, False, clip.notes, clip.num_in_file)
    if found.white.max() < 128:
        raise MediaError(f"{path} has no white place: white is what counts, and what is transparent is black.")
    return found
