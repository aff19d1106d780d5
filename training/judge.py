"""The judge: what a clip shows, read from its pixels alone, and whether that is what was asked.

No learned weights. It shares only the palette and the shape outlines with the renderer. Its thresholds stand frozen
at the top of this file, of `judge_pixels`, `judge_shape` and `judge_motion`: a change re-scores every earlier model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vgen.errors import ShapeError
from vgen.training.data.sprites.keys import AnswerKey
from vgen.training.data.sprites.palette import COLOURS
from vgen.training.judge_motion import QUICK_PACE, Travel, read_travel
from vgen.training.judge_pixels import Observation, observe
from vgen.training.judge_shape import Outline, read_outline

# Frozen thresholds; see `judge_pixels`.
PRESENT_SHARE: Final = 0.8  # of the frames in which an object that neither comes nor goes must be seen
HIDDEN_SHARE: Final = 0.1  # of the frames in which one that comes or goes must be hidden, at one end
ALONE_SHARE: Final = 0.7  # of the frames that show it in full colour in which it must be the only one
AREA_CHANGE: Final = 1.8  # factor from which on the area grows or shrinks
COLOUR_SHARE: Final = 0.6  # of the votes that a first or last colour must have to count as a change
SHAPE_FRAMES: Final = 0.5  # frames with at least this share of the largest area show the shape


@dataclass(frozen=True)
class Verdict:
    """What the judge saw.

    Attributes:
        presence: one object, seen throughout (or from, or until, some frame).
        colour, shape: words of the palette and of the shapes; None where nothing was seen.
        motion: base word, "other" where no known motion fits, None in a picture.
        phases: of a "then" motion; colour_to: of a colour change.
        background: nearest plain colour of the border.
        pace: units of 1/64 of the short side a frame; speed: "slow" or "quick", of straight ways only.
        acceleration: mean length of the track's second difference, pixels a frame squared.
        flicker: mean absolute change of the background from frame to frame, 0..255.
        centres: [F, 2] float32 pixels as (x, y), NaN where nothing was seen.
        overlap: of the best template, 0..1.
    """

    presence: bool
    colour: str | None = None
    shape: str | None = None
    motion: str | None = None
    phases: tuple[str, ...] = ()
    colour_to: str | None = None
    background: str | None = None
    pace: float = 0.0
    speed: str | None = None
    acceleration: float = 0.0
    flicker: float = 0.0
    centres: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 2), np.float32), repr=False)
    overlap: float = 0.0


@dataclass(frozen=True)
class Score:
    """Whether a clip shows what its key says. `motion` is True in a picture, where there is nothing to judge."""

    presence: bool
    colour: bool
    shape: bool
    motion: bool
    acceleration: float
    flicker: float

    @property
    def joint(self) -> bool:
        """All of it at once."""
        return self.presence and self.colour and self.shape and self.motion


def judge(frames: NDArray[np.uint8]) -> Verdict:
    """Read a clip.

    Args:
        frames: uint8 [F, H, W, 3]; F = 1 for a picture.
    Raises:
        ShapeError: another layout or type.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
        raise ShapeError(f"frames is {frames.dtype} {list(frames.shape)}: the judge reads uint8 [F, H, W, 3].")
    seen = observe(frames)
    times = seen.times
    pixels = seen.centres * np.float32(seen.unit)
    if not len(times):
        return Verdict(False, background=seen.background, flicker=seen.flicker, centres=pixels)
    outline = _outline(seen)
    coming = _coming_or_going(seen)
    first, last = _colours(seen)
    solid = np.flatnonzero(seen.solid)
    travel = read_travel(solid, seen.centres[solid].astype(np.float64))
    motion, phases = _motion(seen, outline, coming, travel, first != last)
    picture = len(frames) == 1
    straight = travel.motion not in ("still", "other", "bounce", "circle", "zigzag")
    present = coming is not None or seen.visible.mean() >= PRESENT_SHARE
    return Verdict(
        presence=bool(present and seen.alone[solid].mean() >= ALONE_SHARE),
        colour=first,
        shape=outline.turned if motion == "rotate" else outline.upright,
        motion=None if picture else motion,
        phases=() if picture else phases,
        colour_to=last if motion == "change" else None,
        background=seen.background,
        pace=travel.pace,
        speed=("quick" if travel.pace >= QUICK_PACE else "slow") if straight else None,
        acceleration=_acceleration(pixels),
        flicker=seen.flicker,
        centres=pixels,
        overlap=outline.overlap,
    )


def score(frames: NDArray[np.uint8], key: AnswerKey) -> Score:
    """Judge a clip against its key.

    Args:
        frames: uint8 [F, H, W, 3].
        key: what was asked; one object. Speed, size and background are not scored.
    """
    item = key.objects[0]
    seen = judge(frames)
    moved = seen.motion == item.motion and seen.phases == item.phases and seen.colour_to == item.colour_to
    return Score(
        seen.presence,
        seen.colour == item.colour,
        seen.shape == item.shape,
        len(frames) == 1 or moved,
        seen.acceleration,
        seen.flicker,
    )


def _outline(seen: Observation) -> Outline:
    """The shape where it is large enough to be told."""
    solid = np.flatnonzero(seen.solid)
    times = solid[seen.areas[solid] >= SHAPE_FRAMES * seen.areas[solid].max()]
    return read_outline(seen.alphas[times], seen.areas[times] * seen.unit**2, seen.centres[times] * seen.unit)


def _coming_or_going(seen: Observation) -> str | None:
    """ "appear" or "disappear" where the object is hidden at one end of the clip and only there."""
    count = len(seen.visible)
    first, last = int(seen.times[0]), int(seen.times[-1])
    hidden = max(1.0, HIDDEN_SHARE * count)
    if seen.visible[first : last + 1].mean() < PRESENT_SHARE:
        return None
    if first >= hidden and last == count - 1:
        return "appear"
    return "disappear" if count - 1 - last >= hidden and first == 0 else None


def _colours(seen: Observation) -> tuple[str, str]:
    """The first and the last colour; the same word where there is no clear change."""
    words = list(COLOURS)
    solid = np.flatnonzero(seen.solid)
    third = max(len(solid) // 3, 1)
    start, end = seen.votes[solid[:third]].mean(axis=0), seen.votes[solid[-third:]].mean(axis=0)
    if start.argmax() != end.argmax() and min(start.max(), end.max()) >= COLOUR_SHARE:
        return words[int(start.argmax())], words[int(end.argmax())]
    colour = words[int(seen.votes[solid].sum(axis=0).argmax())]
    return colour, colour


def _resizing(seen: Observation) -> tuple[str, ...]:
    """() at constant area, ("grow",) or ("shrink",), or both in their order."""
    areas = seen.areas[seen.times]
    width = max(len(areas) // 8, 1)
    start, end = np.median(areas[:width]), np.median(areas[-width:])
    middle = np.median(areas[max(len(areas) // 2 - width, 0) : len(areas) // 2 + width + 1])
    if len(areas) >= 5 and middle >= AREA_CHANGE * max(start, end):
        return ("grow", "shrink")
    if len(areas) >= 5 and middle * AREA_CHANGE <= min(start, end):
        return ("shrink", "grow")
    if end >= AREA_CHANGE * start:
        return ("grow",)
    return ("shrink",) if end * AREA_CHANGE <= start else ()


def _motion(
    seen: Observation, outline: Outline, coming: str | None, travel: Travel, recoloured: bool
) -> tuple[str, tuple[str, ...]]:
    """The one thing that happens; "other" where two do, or none that is known."""
    resizing = () if coming else _resizing(seen)
    happenings: list[tuple[str, tuple[str, ...]]] = []
    if coming:
        happenings.append((coming, ()))
    if resizing:
        happenings.append((resizing[0], ()) if len(resizing) == 1 else ("then", resizing))
    if recoloured and not coming:
        happenings.append(("change", ()))
    if travel.motion != "still":
        happenings.append((travel.motion, travel.phases))
    if not happenings:
        return ("rotate", ()) if outline.turn else ("still", ())
    return happenings[0] if len(happenings) == 1 else ("other", ())


def _acceleration(centres: NDArray[np.float32]) -> float:
    bends = np.linalg.norm(np.diff(centres, 2, axis=0), axis=1)
    bends = bends[~np.isnan(bends)]
    return float(bends.mean()) if len(bends) else 0.0
