"""Outlines of the four shapes, in units of the radius, with the centre of area at the origin.

The y axis points down, as rows do. Every shape is 2 wide and 2 high; a triangle has its apex up. A shape is a
circle or a union of convex polygons.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

SHAPES: Final[tuple[str, ...]] = ("circle", "square", "triangle", "cross")
CROSS_ARM: Final = 0.34


class Extent(NamedTuple):
    """How far a shape of radius 1 reaches from its centre, and its area."""

    left: float
    right: float
    up: float
    down: float
    turned: float
    area: float


def _box(half_width: float, half_height: float) -> list[tuple[float, float]]:
    return [(x * half_width, y * half_height) for x, y in ((-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0))]


def _half_planes(vertices: list[tuple[float, float]]) -> NDArray[np.float64]:
    """Edges of a convex polygon as rows (a, b, c): inside is a x + b y <= c."""
    points = np.array(vertices)
    edges = np.roll(points, -1, axis=0) - points
    normals = np.stack([edges[:, 1], -edges[:, 0]], axis=1)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return np.concatenate([normals, np.sum(normals * points, axis=1, keepdims=True)], axis=1)


# Polygons to add (+1) and to take away (-1): the middle of a cross is counted once.
POLYGONS: Final[dict[str, tuple[tuple[int, NDArray[np.float64]], ...]]] = {
    "circle": (),
    "square": ((1, _half_planes(_box(1.0, 1.0))),),
    "triangle": ((1, _half_planes([(0.0, -4.0 / 3.0), (1.0, 2.0 / 3.0), (-1.0, 2.0 / 3.0)])),),
    "cross": (
        (1, _half_planes(_box(1.0, CROSS_ARM))),
        (1, _half_planes(_box(CROSS_ARM, 1.0))),
        (-1, _half_planes(_box(CROSS_ARM, CROSS_ARM))),
    ),
}
EXTENTS: Final[dict[str, Extent]] = {
    "circle": Extent(1.0, 1.0, 1.0, 1.0, 1.0, float(np.pi)),
    "square": Extent(1.0, 1.0, 1.0, 1.0, float(np.sqrt(2.0)), 4.0),
    "triangle": Extent(1.0, 1.0, 4.0 / 3.0, 2.0 / 3.0, 4.0 / 3.0, 2.0),
    "cross": Extent(1.0, 1.0, 1.0, 1.0, float(np.hypot(1.0, CROSS_ARM)), 8.0 * CROSS_ARM - 4.0 * CROSS_ARM**2),
}


def far_edge(shape: str, direction: tuple[float, float], lanes: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far a shape of radius 1 reaches along a unit vector, per lane; -inf in lanes that miss it.

    A lane is the distance from the line through the centre, towards (-y, x) of the direction.
    """
    if shape == "circle":
        return np.where(np.abs(lanes) < 1.0, np.sqrt(np.maximum(1.0 - lanes**2, 0.0)), -np.inf)
    found = np.full_like(lanes, -np.inf)
    for sign, planes in POLYGONS[shape]:
        if sign > 0:
            along = planes[:, 0] * direction[0] + planes[:, 1] * direction[1]
            rest = planes[:, 2] - lanes[:, None] * (planes[:, 1] * direction[0] - planes[:, 0] * direction[1])
            flat = np.abs(along) < 1e-9
            cut = rest / np.where(flat, 1.0, along)
            far = np.where(along > 1e-9, cut, np.inf).min(axis=1)
            near = np.where(along < -1e-9, cut, -np.inf).max(axis=1)
            hit = (near <= far) & np.all(~flat | (rest >= 0.0), axis=1)
            found = np.maximum(found, np.where(hit, far, -np.inf))
    return found
