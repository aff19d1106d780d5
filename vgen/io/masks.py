"""Masks: one rule for how white a picture is, and reading a mask for a clip."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vgen.io.images import eight_bits, upright

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

    found = eight_bits(upright(picture), name)
    grey = np.asarray(found.convert("L"), np.float32)
    if found.mode in ("RGBA", "LA"):
        grey = grey * (np.asarray(found.getchannel("A"), np.float32) / np.float32(255))
    return grey / np.float32(255)
