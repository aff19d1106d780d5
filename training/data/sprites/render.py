"""Pixels: how much of each pixel a shape covers, backgrounds, and surface patterns.

Coverage is exact along rows and sampled at eight scan lines per row. Only the windows around the object are touched,
all frames at once. Pixel (row, column) covers [row, row + 1) x [column, column + 1).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vgen.training.data.sprites.palette import BACKGROUNDS, SECOND_TONES
from vgen.training.data.sprites.shapes import POLYGONS

SCAN_LINES = 8
Floats = NDArray[np.float32]


class Windows(NamedTuple):
    """Per frame a square window around the object: its first row and column, and the coverage in it."""

    rows: NDArray[np.int64]  # [F, n]
    columns: NDArray[np.int64]  # [F, m]
    coverage: Floats  # [F, n, m], 0..1


def cover(shape: str, centres: Floats, radii: Floats, angles: Floats, height: int, width: int) -> Windows:
    """How much of each pixel a shape covers, in windows that hold the whole object, cut off at the canvas' border.

    Args:
        shape: a word of `SHAPES`.
        centres, radii, angles: [F, 2] as (x, y) and [F], pixels; [F], radians, clockwise on the screen.
        height, width: size of the canvas.
    """
    reach = float(radii.max()) * (1.0 if shape == "circle" else 1.45) + 1.0
    if shape != "circle" and not angles.any():
        reach = float(radii.max()) * (4.0 / 3.0 if shape == "triangle" else 1.0) + 1.0
    rows = _window(centres[:, 1], reach, height)
    columns = _window(centres[:, 0], reach, width)
    # Scan lines relative to the centre, in radii: [F, n * SCAN_LINES].
    offsets = (np.arange(SCAN_LINES, dtype=np.float32) + 0.5) / SCAN_LINES
    lines = (rows[:, :, None] + offsets).reshape(len(rows), -1).astype(np.float32)
    lines = (lines - centres[:, 1:2]) / radii[:, None]
    # Left edge of every pixel relative to the centre, in pixels: [F, 1, m].
    edges = (columns - centres[:, 0:1]).astype(np.float32)[:, None, :]
    half = np.sqrt(np.maximum(1.0 - lines**2, 0.0))
    parts = [(1, -half, half)] if shape == "circle" else []
    parts += [(sign, *_polygon_span(planes, lines, angles)) for sign, planes in POLYGONS[shape]]
    total: Floats | float = 0.0
    for sign, left, right in parts:
        scale = radii[:, None]
        inside = np.minimum(edges + 1.0, (right * scale)[:, :, None]) - np.maximum(edges, (left * scale)[:, :, None])
        np.maximum(inside, 0.0, out=inside)
        total = total + inside if sign > 0 else total - inside
    coverage = np.asarray(total).reshape(len(rows), rows.shape[1], SCAN_LINES, columns.shape[1]).mean(axis=2)
    return Windows(rows, columns, np.clip(coverage, 0.0, 1.0))


def _window(centres: Floats, reach: float, length: int) -> NDArray[np.int64]:
    size = min(int(np.ceil(2.0 * reach)) + 1, length)
    first = np.clip(np.floor(centres - reach).astype(np.int64), 0, length - size)
    return first[:, None] + np.arange(size)


def _polygon_span(planes: NDArray[np.float64], lines: Floats, angles: Floats) -> tuple[Floats, Floats]:
    """Where each scan line enters and leaves a convex polygon turned by `angles`; right < left where it misses."""
    left = np.full_like(lines, -4.0)
    right = np.full_like(lines, 4.0)
    for across, down, limit in planes:
        slope_x = (across * np.cos(angles) - down * np.sin(angles)).astype(np.float32)[:, None]
        slope_y = (across * np.sin(angles) + down * np.cos(angles)).astype(np.float32)[:, None]
        rest = np.float32(limit) - slope_y * lines
        flat = np.abs(slope_x) < 1e-6
        crossing = rest / np.where(flat, np.float32(1.0), slope_x)
        upper = np.where(flat, np.where(rest >= 0.0, 4.0, -4.0), np.where(slope_x > 0.0, crossing, 4.0))
        lower = np.where(flat | (slope_x > 0.0), -4.0, crossing)
        np.minimum(right, upper, out=right, casting="unsafe")
        np.maximum(left, lower, out=left, casting="unsafe")
    return left, right


def surface(
    pattern: str, windows: Windows, centres: Floats, radii: Floats, angles: Floats, seed: tuple[float, float]
) -> Floats:
    """The darkening of a pattern ("striped" or "spotted") that sticks to the object: see `cover` for its place.

    Returns:
        [F, n, m, 1] float32 factors for the colour, 0.78 on the dark parts and 1 elsewhere; `seed`, two numbers in
        [0, 1), gives the direction and the phase.
    """
    across = (windows.columns + 0.5 - centres[:, 0:1])[:, None, :] / radii[:, None, None]
    down = (windows.rows + 0.5 - centres[:, 1:2])[:, :, None] / radii[:, None, None]
    turned = angles[:, None, None] - np.pi * seed[0]
    first = across * np.cos(turned) + down * np.sin(turned)
    second = down * np.cos(turned) - across * np.sin(turned)
    shift = 2.0 * np.pi * seed[1]
    if pattern == "striped":
        wave = np.sin(6.5 * first + shift)
    else:
        wave = 1.6 * np.cos(5.5 * first + shift) * np.cos(5.5 * second + shift) - 0.4
    return (1.0 - 0.22 * np.clip(0.35 + 2.5 * wave, 0.0, 1.0)).astype(np.float32)[..., None]


def paint(
    frames: NDArray[np.uint8], windows: Windows, colours: Floats, alphas: Floats, shade: Floats | None = None
) -> NDArray[np.bool_]:
    """Paint an object over `frames` [F, H, W, 3], in place.

    Args:
        frames, windows: the canvas, and the coverage of the object.
        colours, alphas: [F, 3], 0 to 255; [F], 1 = opaque.
        shade: [F, n, m, 1] factors for the colour.
    Returns:
        [F, H, W] bool: the pixels that are at least half covered by a visible object.
    """
    places = (np.arange(len(frames))[:, None, None], windows.rows[:, :, None], windows.columns[:, None, :])
    behind = frames[places].astype(np.float32)
    colour = colours[:, None, None, :] if shade is None else colours[:, None, None, :] * shade
    opacity = (windows.coverage * alphas[:, None, None])[..., None]
    frames[places] = (behind + opacity * (colour - behind) + 0.5).astype(np.uint8)
    mask = np.zeros(frames.shape[:3], dtype=np.bool_)
    mask[places] = opacity[..., 0] >= 0.5
    return mask


def backdrop(
    kind: str, colour: str, colour_to: str | None, height: int, width: int, seed: tuple[float, float, float]
) -> NDArray[np.uint8]:
    """The picture behind the objects: uint8 [H, W, 3], or [1, 1, 3] for a plain one.

    `colour_to` is the far colour of a gradient; `seed`, three numbers in [0, 1), places, turns and scales a texture.
    """
    first = np.array(BACKGROUNDS[colour], dtype=np.float32)
    if kind == "plain":
        return first.astype(np.uint8)[None, None]
    unit = 64.0 / min(height, width)
    down = ((np.arange(height, dtype=np.float64) + 0.5) * unit)[:, None]
    across = ((np.arange(width, dtype=np.float64) + 0.5) * unit)[None, :]
    place_a, place_b, scale = seed
    if kind == "gradient":
        angle = 2.0 * np.pi * place_a
        along = (down - down.mean()) * np.sin(angle) + (across - across.mean()) * np.cos(angle)
        share = (along - along.min()) / np.ptp(along)
        second = np.array(BACKGROUNDS[colour_to or colour], dtype=np.float32)
    else:
        second = np.array(SECOND_TONES[colour], dtype=np.float32)
        share = _texture(kind, down, across, place_a, place_b, 5.0 + 4.0 * scale)
    return (first + share.astype(np.float32)[..., None] * (second - first) + 0.5).astype(np.uint8)


def _texture(
    kind: str, down: NDArray[np.float64], across: NDArray[np.float64], place_a: float, place_b: float, step: float
) -> NDArray[np.float64]:
    """Shares in 0..1 of the second tone: stripes, a checkerboard with soft edges, or a field of soft specks."""
    if kind == "striped":
        angle = np.pi * place_a
        wave = np.sin(np.pi * (across * np.cos(angle) + down * np.sin(angle)) / step + 2.0 * np.pi * place_b)
        return np.clip(0.5 + 2.0 * wave, 0.0, 1.0)
    if kind == "checkered":
        wave = np.sin(np.pi * (across / step + place_a)) * np.sin(np.pi * (down / step + place_b))
        return np.clip(0.5 + 4.0 * wave, 0.0, 1.0)
    rows, columns = (np.arange(int(axis.max() // 4.0) + 2) for axis in (down, across))
    # A fixed scramble of the place gives every speck its own strength.
    noise = (
        np.sin(rows[:, None] * (12.9898 + 40.0 * place_a) + columns[None, :] * (78.233 + 40.0 * place_b)) * 43758.5453
    )
    noise -= np.floor(noise)
    return _hat(down.ravel(), rows) @ noise @ _hat(across.ravel(), columns).T


def _hat(points: NDArray[np.float64], knots: NDArray[np.int64]) -> NDArray[np.float64]:
    """Weights of linear interpolation on a grid of spacing 4: [points, knots]."""
    return np.maximum(0.0, 1.0 - np.abs(points[:, None] / 4.0 - knots[None, :]))
