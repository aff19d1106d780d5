"""The colours of SpriteWorld and the Lab distance that tells them apart.

The renderer paints with these colours and the judge names colours by them; apart from the outlines in `shapes`
this is all that the two share.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

COLOURS: Final[dict[str, tuple[int, int, int]]] = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 80, 230),
    "yellow": (240, 220, 50),
    "purple": (160, 60, 200),
    "orange": (250, 140, 30),
    "cyan": (40, 210, 220),
    "white": (245, 245, 245),
}
BACKGROUNDS: Final[dict[str, tuple[int, int, int]]] = {
    "black": (10, 10, 10),
    "gray": (110, 110, 110),
    "navy": (20, 25, 80),
    "brown": (90, 60, 35),
}
# The second tone of a textured background of that colour.
SECOND_TONES: Final[dict[str, tuple[int, int, int]]] = {
    "black": (38, 38, 38),
    "gray": (90, 90, 90),
    "navy": (38, 46, 108),
    "brown": (112, 80, 50),
}

# The smallest Lab distance between an object and anything behind it, and between it and the mixtures that it
# passes through while it changes colour.
MIN_CONTRAST: Final = 35.0
MIN_MIXED_CONTRAST: Final = 22.0

_CODES = np.arange(256, dtype=np.float64) / 255.0
_TO_LINEAR = np.where(_CODES <= 0.04045, _CODES / 12.92, ((_CODES + 0.055) / 1.055) ** 2.4).astype(np.float32)
# sRGB (D65) to XYZ, every row divided by the white point, so that white maps to (1, 1, 1).
_TO_XYZ = (
    np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]],
        dtype=np.float64,
    )
    / np.array([[0.95047], [1.0], [1.08883]])
).astype(np.float32)


def rgb_to_lab(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Convert sRGB to CIE Lab (D65).

    Args:
        pixels: [..., 3] uint8.
    Returns:
        [..., 3] float32: L in 0..100, a, b.
    """
    ratio = _TO_LINEAR[pixels] @ _TO_XYZ.T
    cube = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16.0 / 116.0)
    x_axis, y_axis, z_axis = cube[..., 0], cube[..., 1], cube[..., 2]
    return np.stack([116.0 * y_axis - 16.0, 500.0 * (x_axis - y_axis), 200.0 * (y_axis - z_axis)], axis=-1)


def colour_distance(first: tuple[int, int, int], second: tuple[int, int, int]) -> float:
    """Euclidean distance of two sRGB colours in Lab."""
    lab = rgb_to_lab(np.array([first, second], dtype=np.uint8))
    return float(np.linalg.norm(lab[0] - lab[1]))


def mix(first: tuple[int, int, int], second: tuple[int, int, int], share: float) -> tuple[int, int, int]:
    """The sRGB colour `share` of the way from `first` to `second`."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue
