"""Paths of one object: where it is, how large, how turned and how visible in every frame.

Lengths are in units of 1/64 of the canvas' short side, so a path looks the same on every canvas; times are in
frames. A path that would leave the room it has is slowed down until it fits: `slowed` then says that the speed
is below its range, and the key names no speed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vgen.training.data.sprites.keys import DIRECTIONS
from vgen.training.data.sprites.splits import Draws

SPEED_RANGE: Final = {"slow": (0.9, 1.3), "quick": (1.8, 2.4)}
TURN_RANGE: Final = {"slow": (5.0, 8.0), "quick": (12.0, 18.0)}  # degrees per frame
MIN_TURN: Final = 45.0  # degrees over a whole clip, however short
# How much the area grows (or shrinks): the wide range where the object starts at the end of the scale that
# leaves it room, the narrow one where it would become too large or too small to be distinguished.
WIDE_FACTOR: Final = (2.6, 5.8)
NARROW_FACTOR: Final = (2.6, 3.6)

Array = NDArray[np.float64]


@dataclass
class Path:
    """One object over time; arrays are [F], `offset` is [F, 2] as (x, y) from the start."""

    offset: Array
    radius_scale: Array
    angle: Array
    alpha: Array
    mixed: Array
    slowed: bool = False
    impacts: list[float] = field(default_factory=list)

    @classmethod
    def at_rest(cls, num_frames: int) -> Path:
        """Nothing moves or changes."""
        count = num_frames
        return cls(np.zeros((count, 2)), np.ones(count), np.zeros(count), np.ones(count), np.zeros(count))


def factor_range(motion: str, phases: tuple[str, ...], size: str) -> tuple[float, float]:
    """The range of the area factor of a growing or shrinking object that starts at `size`."""
    first = phases[0] if motion == "then" else motion
    roomy = (first == "grow" and size == "small") or (first == "shrink" and size == "large")
    return WIDE_FACTOR if roomy and motion != "then" else NARROW_FACTOR


def largest_scale(motion: str, phases: tuple[str, ...], factor: float) -> float:
    """The largest radius of the path, in radii at the start."""
    return float(np.sqrt(factor)) if motion == "grow" or phases == ("grow", "shrink") else 1.0


def build_path(
    motion: str,
    phases: tuple[str, ...],
    speed: str | None,
    num_frames: int,
    room: tuple[float, float],
    factor: float,
    draws: Draws,
) -> Path:
    """The path of one object.

    Args:
        motion, phases: base words, of a "then" motion and of its two phases.
        speed: "slow", "quick" or None; used by straight and turning motions.
        num_frames: at least 2.
        room: how far the object can travel along x and y and stay whole inside.
        factor: area factor of growing and shrinking.
        draws: the clip's random numbers.
    """
    frames = np.arange(num_frames, dtype=np.float64)
    path = Path.at_rest(num_frames)
    if motion in DIRECTIONS:
        low, high = SPEED_RANGE[speed or "slow"]
        pace, path.slowed = _fitting_pace(motion, draws.between("rate", low, high), low, frames[-1], room)
        path.offset = np.outer(frames * pace, DIRECTIONS[motion])
    elif motion == "then":
        _two_phases(path, frames, phases, speed, room, factor, draws)
    elif motion in _CURVES:
        _CURVES[motion](path, frames, room, draws)
    elif motion in ("grow", "shrink"):
        end = factor**0.5 if motion == "grow" else factor**-0.5
        path.radius_scale = 1.0 + (end - 1.0) * frames / frames[-1]
    elif motion == "rotate":
        low, high = TURN_RANGE[speed or "slow"]
        pace = max(draws.between("rate", low, high), MIN_TURN / frames[-1])
        path.angle = draws.sign("turn") * np.deg2rad(pace) * frames
    elif motion in ("change", "appear", "disappear"):
        _fade(path, frames, motion, draws)
    return path


def _fitting_pace(
    direction: str, pace: float, low: float, duration: float, room: tuple[float, float]
) -> tuple[float, bool]:
    """The pace, lowered until the way fits the room; and whether that took it below `low`."""
    reach = [space / abs(part) for space, part in zip(room, DIRECTIONS[direction], strict=True) if part != 0.0]
    fitting = min(pace, min(reach) / max(duration, 1.0))
    return fitting, fitting < low


def _two_phases(
    path: Path,
    frames: Array,
    phases: tuple[str, ...],
    speed: str | None,
    room: tuple[float, float],
    factor: float,
    draws: Draws,
) -> None:
    """Two halves; the turn is at the middle frame."""
    middle = max(round(frames[-1] / 2.0), 1)
    spans = (np.minimum(frames, middle), np.maximum(frames - middle, 0.0))
    if phases[0] in ("grow", "shrink"):
        end = factor**0.5 if phases[0] == "grow" else factor**-0.5
        back = spans[1] / max(frames[-1] - middle, 1.0)
        path.radius_scale = 1.0 + (end - 1.0) * (spans[0] / middle - back)
        return
    low, high = SPEED_RANGE[speed or "slow"]
    pace = draws.between("rate", low, high)
    for direction, span in zip(phases, spans, strict=True):
        if direction in DIRECTIONS:
            fitting, slowed = _fitting_pace(direction, pace, low, span.max(), room)
            path.offset += np.outer(span * fitting, DIRECTIONS[direction])
            path.slowed |= slowed


def _bounce(path: Path, frames: Array, room: tuple[float, float], draws: Draws) -> None:
    """Fall from the top of an arc onto a floor, under constant gravity, and rebound with some loss."""
    duration = float(frames[-1])
    fall = min(draws.between("period", 4.5, 6.0), 0.55 * duration)
    height = min(draws.between("amplitude", 13.0, 21.0), room[1])
    gravity = 2.0 * height / fall**2
    # Of the pace, at every impact; in a long clip less is lost, so that it still bounces at its end.
    rebound = draws.between("rebound", 0.85, 0.97) ** (16.0 / max(duration, 16.0))
    drift = draws.between("drift", -0.6, 0.6) if draws["drift_sign"] < 0.5 else 0.0
    drift = float(np.clip(drift, -room[0] / duration, room[0] / duration))
    heights = height - 0.5 * gravity * np.minimum(frames, fall) ** 2
    impact, pace = fall, gravity * fall
    while impact <= duration:
        path.impacts.append(impact)
        pace *= rebound
        flight = 2.0 * pace / gravity
        if flight < 0.5:
            heights[frames >= impact] = 0.0
            break
        since = frames - impact
        arc = (since >= 0.0) & (since < flight)
        heights[arc] = (pace * since - 0.5 * gravity * since**2)[arc]
        impact += flight
    path.offset = np.stack([drift * frames, height - np.maximum(heights, 0.0)], axis=1)


def _circle(path: Path, frames: Array, room: tuple[float, float], draws: Draws) -> None:
    """Run around a circle at constant pace, at least three quarters of a turn."""
    radius = min(draws.between("amplitude", 6.5, 10.5), room[0] / 2.0, room[1] / 2.0)
    pace = max(draws.between("rate", 0.34, 0.48), 1.6 * np.pi / frames[-1])
    phase = draws.between("phase", 0.0, 2.0 * np.pi) + draws.sign("turn") * pace * frames
    path.offset = radius * np.stack([np.cos(phase), np.sin(phase)], axis=1)


def _zigzag(path: Path, frames: Array, room: tuple[float, float], draws: Draws) -> None:
    """Advance along one axis and swing to and fro across it, with at least two turns."""
    duration = float(frames[-1])
    main = draws.pick("main", 4)
    along, across = (0, 1) if main < 2 else (1, 0)
    pace = min(draws.between("drift", 0.9, 1.4), room[along] / duration)
    half = max(min(draws.between("period", 3.6, 5.0), duration / 3.2), 1.0)
    width = min(draws.between("amplitude", 6.0, 9.0), room[across])
    swing = np.abs((frames / half + draws.between("phase", 0.0, 2.0)) % 2.0 - 1.0)
    path.offset[:, along] = (1.0 if main % 2 else -1.0) * pace * frames
    path.offset[:, across] = width * swing


def _fade(path: Path, frames: Array, motion: str, draws: Draws) -> None:
    """Change colour, come or go within a fifth of the clip, somewhere around its middle."""
    duration = float(frames[-1])
    length = max(draws.between("how_long", 0.08, 0.2) * duration, 1.0)
    start = draws.between("when", 0.3, 0.5) * duration
    share = np.clip((frames - start) / length, 0.0, 1.0)
    if motion == "change":
        path.mixed = share
    else:
        path.alpha = share if motion == "appear" else 1.0 - share


_CURVES: Final = {"bounce": _bounce, "circle": _circle, "zigzag": _zigzag}
