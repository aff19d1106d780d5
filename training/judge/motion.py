"""The motion of a tracked centre: which of the known paths it follows, if any."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vgen.training.data.sprites.keys import DIRECTIONS

Array = NDArray[np.float64]

# Frozen thresholds; see `judge_pixels`. Lengths in units of 1/64 of the short side, paces in units per frame.
REST_EXTENT: Final = 2.5  # whatever stays within this is at rest ...
REST_PACE: Final = 0.42  # ... or within this many units per frame of the clip, if that is less
PATH_ERROR: Final = (0.7, 0.035, 1.5)  # of a straight path or two: a constant, a share of the extent, the most
SAME_DIRECTION: Final = 0.82  # cosine, about 35 degrees
STOP_SHARE: Final = 0.4  # of the faster phase: below it the slower phase is a stop
BREAKS: Final = (0.35, 0.65)  # where the second phase may begin, share of the clip
SWEEP: Final = 3.6  # radians around the middle of a circle
ROUNDNESS: Final = 0.2  # radial error, share of the radius
MIN_RADIUS: Final = 3.0
GRAVITY: Final = 0.35  # median downward acceleration of a bounce, units per frame squared
MIN_HEIGHT: Final = 5.0  # of a bounce
SWING: Final = 4.0  # across a zigzag
MIN_REVERSALS: Final = 2  # of a zigzag
QUICK_PACE: Final = 1.55  # between slow and quick


class Travel(NamedTuple):
    """A reading of a path: base word ("still" at rest, "other" if none fits), phases, and pace."""

    motion: str
    phases: tuple[str, ...] = ()
    pace: float = 0.0


def read_travel(times: NDArray[np.int64], centres: Array) -> Travel:
    """Name the path of a centre.

    Args:
        times: [n] frame numbers, rising.
        centres: [n, 2] units as (x, y).
    """
    if len(times) < 2:
        return Travel("still")
    duration = float(times[-1] - times[0])
    extent = float(np.ptp(centres, axis=0).max())
    if extent <= min(REST_EXTENT, REST_PACE * duration):
        return Travel("still")
    pace = float(np.linalg.norm(np.diff(centres, axis=0), axis=1).sum() / duration)
    if len(times) >= 5:
        curves = {"circle": _is_circle, "bounce": _is_bounce, "zigzag": _is_zigzag}
        for motion, follows in curves.items():
            if follows(times, centres):
                return Travel(motion, pace=pace)
    return _read_phases(times.astype(np.float64), centres, extent) or Travel("other", pace=pace)


def direction_of(step: Array) -> str:
    """The nearest of the eight directions."""
    return max(DIRECTIONS, key=lambda word: float(np.dot(DIRECTIONS[word], step)))


def _read_phases(times: Array, centres: Array, extent: float) -> Travel | None:
    """One straight way, or two with a turn or a stop between them; None if neither fits."""
    start, duration = times[0], times[-1] - times[0]
    limit = min(PATH_ERROR[0] + PATH_ERROR[1] * extent, PATH_ERROR[2])
    best: tuple[float, Array, Array] | None = None
    if len(times) < 5:
        return _one_way(times, centres, limit)
    for turn in np.arange(np.ceil(start + BREAKS[0] * duration), start + BREAKS[1] * duration + 1e-9, 0.5):
        basis = np.stack([np.ones_like(times), np.minimum(times, turn), np.maximum(times - turn, 0.0)], axis=1)
        found = np.linalg.lstsq(basis, centres, rcond=None)[0]
        error = float(np.sqrt(((basis @ found - centres) ** 2).sum(axis=1).mean()))
        if best is None or error < best[0]:
            best = (error, found[1], found[2])
    if best is None or best[0] > limit:
        return None
    first, second = best[1], best[2]
    paces = float(np.linalg.norm(first)), float(np.linalg.norm(second))
    faster = max(paces)
    aligned = float(first @ second) >= SAME_DIRECTION * paces[0] * paces[1]
    if aligned and min(paces) >= STOP_SHARE * faster:
        return Travel(direction_of(centres[-1] - centres[0]), pace=float(np.mean(paces)))
    phases = tuple(
        direction_of(step) if pace >= STOP_SHARE * faster else "still"
        for step, pace in zip((first, second), paces, strict=True)
    )
    return Travel("then", phases, faster)


def _one_way(times: Array, centres: Array, limit: float) -> Travel | None:
    slope, start = np.polyfit(times, centres, 1)
    error = float(np.sqrt(((np.outer(times, slope) + start - centres) ** 2).sum(axis=1).mean()))
    return Travel(direction_of(slope), pace=float(np.linalg.norm(slope))) if error <= limit else None


def _is_circle(times: NDArray[np.int64], centres: Array) -> bool:
    basis = np.column_stack([2.0 * centres, np.ones(len(centres))])
    found = np.linalg.lstsq(basis, (centres**2).sum(axis=1), rcond=None)[0]
    middle = found[:2]
    spokes = centres - middle
    lengths = np.linalg.norm(spokes, axis=1)
    radius = float(lengths.mean())
    angles = np.unwrap(np.arctan2(spokes[:, 1], spokes[:, 0]))
    swept = abs(float(angles[-1] - angles[0]))
    return bool(radius >= MIN_RADIUS and lengths.std() <= ROUNDNESS * radius and swept >= SWEEP)


def _is_bounce(times: NDArray[np.int64], centres: Array) -> bool:
    """Falls, turns sharply at the bottom, rises; accelerates down in between; drifts evenly to the side."""
    across, down = centres[:, 0], centres[:, 1]
    rebounds = (np.maximum.accumulate(down) - down).max() >= 0.2 * MIN_HEIGHT
    bend = np.diff(down, 2)
    side = across - np.polyval(np.polyfit(times, across, 1), times)
    return bool(
        rebounds
        and np.ptp(down) >= MIN_HEIGHT
        and np.median(bend) >= GRAVITY
        and bend.min() <= -2.0 * GRAVITY
        and np.abs(side).max() <= 0.25 * np.ptp(down) + 0.5
    )


def _is_zigzag(times: NDArray[np.int64], centres: Array) -> bool:
    """Advances along one axis while it swings across it at least twice."""
    for along in (0, 1):
        forward, swing = centres[:, along], centres[:, 1 - along]
        steps = np.diff(forward) * np.sign(forward[-1] - forward[0])
        advances = abs(forward[-1] - forward[0]) >= MIN_HEIGHT and (steps > -0.3).mean() >= 0.85
        if advances and len(_turns(swing, SWING * 0.5)) >= MIN_REVERSALS and np.ptp(swing) >= SWING:
            return True
    return False


def _turns(track: Array, depth: float) -> list[int]:
    """Where a track turns back by at least `depth`."""
    turns: list[int] = []
    heading, extreme = 0.0, 0
    for place in range(1, len(track)):
        gone = track[place] - track[extreme]
        if heading == 0.0:
            if abs(track[place] - track[0]) >= depth:
                heading, extreme = float(np.sign(track[place] - track[0])), place
        elif gone * heading > 0.0:
            extreme = place
        elif -gone * heading >= depth:
            turns.append(extreme)
            heading, extreme = -heading, place
    return turns
