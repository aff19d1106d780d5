"""Shape and turning of an outline: overlap with templates of unit area, at every angle."""

from __future__ import annotations

from functools import cache
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vgen.training.data.sprites.shapes import EXTENTS, POLYGONS, SHAPES

Floats = NDArray[np.float32]

# Frozen thresholds; see `judge_pixels`.
GRID: Final = 32  # cells per side of the normalised picture
REACH: Final = 1.15  # half its side, in square roots of the outline's area
ANGLE_STEP: Final = 7.5  # degrees between templates
UPRIGHT: Final = 7.5  # degrees by which an upright shape may lean
# Templates repeat after this turn, as nearly as the judge can tell.
PERIODS: Final[dict[str, float]] = {"circle": 0.0, "square": 90.0, "triangle": 120.0, "cross": 90.0}
MIN_TURN: Final = 25.0  # degrees over the clip, from which on it rotates
TURN_FIT: Final = 0.8  # share of the angle's variance that a steady turn explains


class Outline(NamedTuple):
    """What the templates say: the shape when upright, the shape at any angle, and the total turn in degrees."""

    upright: str
    turned: str
    overlap: float
    turn: float


class _Templates(NamedTuple):
    pictures: Floats  # [templates, GRID * GRID]
    shapes: NDArray[np.int64]  # place in SHAPES
    angles: Floats  # degrees


@cache
def _templates() -> _Templates:
    pictures, shapes, angles = [], [], []
    for place, shape in enumerate(SHAPES):
        turns = {"circle": 0.0, "triangle": 360.0}.get(shape, PERIODS[shape])
        for angle in np.arange(0.0, max(turns, 1.0), ANGLE_STEP):
            pictures.append(_picture(shape, float(angle)))
            shapes.append(place)
            angles.append(angle)
    return _Templates(np.stack(pictures), np.array(shapes), np.array(angles, np.float32))


def _picture(shape: str, angle: float) -> Floats:
    """A shape of area 1 on the grid, 4 x 4 samples per cell."""
    fine = GRID * 4
    line = (np.arange(fine) + 0.5) / fine * 2.0 * REACH - REACH
    across, down = np.meshgrid(line * EXTENTS[shape].area ** 0.5, line * EXTENTS[shape].area ** 0.5)
    cos, sin = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    across, down = cos * across + sin * down, cos * down - sin * across
    inside = across**2 + down**2 <= 1.0 if shape == "circle" else np.zeros_like(across, dtype=np.bool_)
    for sign, planes in POLYGONS[shape]:
        if sign > 0:
            inside |= np.all([a * across + b * down <= c for a, b, c in planes], axis=0)
    return inside.reshape(GRID, 4, GRID, 4).mean(axis=(1, 3)).ravel().astype(np.float32)


def read_outline(alphas: Floats, areas: Floats, centres: Floats) -> Outline:
    """Name the shape of an outline and how far it turns.

    Args:
        alphas: [F, H, W], the outlines; at least one.
        areas: [F] pixels; centres: [F, 2] pixels as (x, y).
    """
    templates = _templates()
    pictures = _normalised(alphas, areas, centres)
    shared = np.stack([np.minimum(picture, templates.pictures).sum(axis=1) for picture in pictures])
    union = pictures.sum(axis=1)[:, None] + templates.pictures.sum(axis=1) - shared
    overlaps = shared / np.maximum(union, 1e-6)
    upright = (templates.angles <= UPRIGHT) | (templates.angles >= 360.0 - UPRIGHT)
    upright |= (templates.shapes != SHAPES.index("triangle")) & (templates.angles >= 90.0 - UPRIGHT)
    best = [overlaps[:, templates.shapes == place].max(axis=1).mean() for place in range(len(SHAPES))]
    leaning = [overlaps[:, (templates.shapes == place) & upright].max(axis=1).mean() for place in range(len(SHAPES))]
    turned = SHAPES[int(np.argmax(best))]
    return Outline(SHAPES[int(np.argmax(leaning))], turned, float(max(best)), _turn(overlaps, turned))


def _normalised(alphas: Floats, areas: Floats, centres: Floats) -> Floats:
    """Outlines resampled to unit area around their centre: [F, GRID * GRID]."""
    line = ((np.arange(GRID) + 0.5) / GRID * 2.0 - 1.0) * REACH
    scale = np.sqrt(areas)[:, None, None]
    across = centres[:, 0, None, None] - 0.5 + scale * line[None, None, :] + 0.0 * line[None, :, None]
    down = centres[:, 1, None, None] - 0.5 + scale * line[None, :, None] + 0.0 * line[None, None, :]
    padded = np.pad(alphas, ((0, 0), (1, 1), (1, 1)))
    columns = np.clip(across + 1.0, 0.0, padded.shape[2] - 1.001)
    rows = np.clip(down + 1.0, 0.0, padded.shape[1] - 1.001)
    left, top = columns.astype(np.int64), rows.astype(np.int64)
    share_x, share_y = columns - left, rows - top
    frame = np.arange(len(alphas))[:, None, None]
    upper = padded[frame, top, left] * (1 - share_x) + padded[frame, top, left + 1] * share_x
    lower = padded[frame, top + 1, left] * (1 - share_x) + padded[frame, top + 1, left + 1] * share_x
    return (upper * (1 - share_y) + lower * share_y).reshape(len(alphas), -1).astype(np.float32)


def _turn(overlaps: Floats, shape: str) -> float:
    """Degrees of a steady turn over the frames; 0 where the outline does not turn steadily."""
    period = PERIODS[shape]
    if not period or len(overlaps) < 3:
        return 0.0
    templates = _templates()
    mine = templates.shapes == SHAPES.index(shape)
    curve = overlaps[:, mine]
    count = curve.shape[1]
    top = curve.argmax(axis=1)
    frame = np.arange(len(curve))
    before, peak, after = curve[frame, (top - 1) % count], curve[frame, top], curve[frame, (top + 1) % count]
    bend = before - 2.0 * peak + after
    offset = np.where(bend < -1e-6, 0.5 * (before - after) / np.minimum(bend, -1e-6), 0.0)
    angles = templates.angles[mine][top] + ANGLE_STEP * offset
    steps = (np.diff(angles) + period / 2.0) % period - period / 2.0
    track = np.concatenate([[0.0], np.cumsum(steps)])
    slope, start = np.polyfit(frame, track, 1)
    rest = track - (slope * frame + start)
    steady = rest.var() <= (1.0 - TURN_FIT) * track.var()
    total = float(slope * (len(track) - 1))
    return total if steady and abs(total) >= MIN_TURN else 0.0
