"""The judge: what a clip shows, read from its pixels alone, and whether that is what was asked.

No learned weights. It shares only the palette and the shape outlines with the renderer. Its thresholds stand frozen
at the top of this file and of `judge_pixels`, `judge_pair`, `judge_shape` and `judge_motion`: a change re-scores every
earlier model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vgen.errors import ShapeError
from vgen.training.data.sprites.keys import AnswerKey, ObjectKey
from vgen.training.data.sprites.palette import COLOURS
from vgen.training.judge.motion import QUICK_PACE, Travel, read_travel
from vgen.training.judge.pair import PairObservation, observe_pair
from vgen.training.judge.pixels import Observation, observe
from vgen.training.judge.shape import Outline, read_outline

# Frozen thresholds; see `judge_pixels`.
PRESENT_SHARE: Final = 0.8  # of the frames in which an object that neither comes nor goes must be seen
HIDDEN_SHARE: Final = 0.1  # of the frames in which one that comes or goes must be hidden, at one end
ALONE_SHARE: Final = 0.7  # of the frames that show it in full colour in which it must be the only one
AREA_CHANGE: Final = 1.8  # factor from which on the area grows or shrinks
COLOUR_SHARE: Final = 0.6  # of the votes that a first or last colour must have to count as a change
APART_SHARE: Final = 0.1  # of the frames in which two objects must be seen apart
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
        pace: units of 1/64 of the short side per frame; speed: "slow" or "quick", of straight ways only.
        acceleration: mean length of the track's second difference, pixels per frame squared.
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
    """Whether a clip shows what its key says: of two objects, whether both do.

    `motion` is True in a picture, where there is nothing to judge; `relation` is None for one object.
    """

    presence: bool
    colour: bool
    shape: bool
    motion: bool
    acceleration: float
    flicker: float
    relation: bool | None = None

    @property
    def joint(self) -> bool:
        """All of it at once."""
        return self.presence and self.colour and self.shape and self.motion and self.relation is not False


@dataclass(frozen=True)
class PairVerdict:
    """What the judge saw of two objects, in any order: a verdict on each, and the `RELATIONS` of each to the other."""

    objects: tuple[Verdict, Verdict]
    relations: tuple[frozenset[str], frozenset[str]]


def judge(frames: NDArray[np.uint8]) -> Verdict:
    """Read a clip, uint8 [F, H, W, 3]; F = 1 for a picture. Another layout or type is a ShapeError."""
    _check(frames)
    seen = observe(frames)
    if not len(seen.times):
        return Verdict(
            False, background=seen.background, flicker=seen.flicker, centres=seen.centres * np.float32(seen.unit)
        )
    coming = _coming_or_going(seen)
    return _read(seen, coming, coming is not None or bool(seen.visible.mean() >= PRESENT_SHARE))


def judge_pair(frames: NDArray[np.uint8]) -> PairVerdict | None:
    """As `judge`, a clip of two objects of different colours; None where there are not two."""
    _check(frames)
    seen = observe_pair(frames)
    if seen is None:
        return None
    one, other = (_read(item, None, _is_followed(seen, number)) for number, item in enumerate(seen.objects))
    return PairVerdict((one, other), seen.relations)


def _check(frames: NDArray[np.uint8]) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
        raise ShapeError(f"frames is {frames.dtype} {list(frames.shape)}: the judge reads uint8 [F, H, W, 3].")


def _is_followed(seen: PairObservation, number: int) -> bool:
    """Whether one of two objects is there throughout, if hidden at times, and is seen alone often enough."""
    alone = seen.objects[number].visible.mean() >= APART_SHARE
    return bool(alone and seen.explained[number].mean() >= PRESENT_SHARE)


def _read(seen: Observation, coming: str | None, present: bool) -> Verdict:
    """Colour, shape and motion of one object that is seen in some frame."""
    pixels = seen.centres * np.float32(seen.unit)
    outline = _outline(seen)
    first, last = _colours(seen)
    solid = np.flatnonzero(seen.solid)
    travel = read_travel(solid, seen.centres[solid].astype(np.float64))
    motion, phases = _motion(seen, outline, coming, travel, first != last)
    picture = len(pixels) == 1
    straight = travel.motion not in ("still", "other", "bounce", "circle", "zigzag")
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
    """Judge a clip, uint8 [F, H, W, 3], against its key; speed, size and background are not scored."""
    if len(key.objects) == 2:
        return _score_pair(frames, key)
    seen = judge(frames)
    return Score(seen.presence, *_agreement(seen, key.objects[0], len(frames) == 1), seen.acceleration, seen.flicker)


def _agreement(seen: Verdict, item: ObjectKey, picture: bool) -> tuple[bool, bool, bool]:
    """Whether colour, shape and motion are those of the key."""
    moved = seen.motion == item.motion and seen.phases == item.phases and seen.colour_to == item.colour_to
    return seen.colour == item.colour, seen.shape == item.shape, picture or moved


def centres_of(frames: NDArray[np.uint8], key: AnswerKey) -> NDArray[np.float32]:
    """Where the objects of a key are in frames, uint8 [F, H, W, 3].

    Returns:
        [F, objects, 2] pixels as (x, y), NaN where one is not seen whole.
    """
    if len(key.objects) == 1:
        return judge(frames).centres[:, None]
    seen = judge_pair(frames)
    if seen is None:
        return np.full((len(frames), 2, 2), np.nan, np.float32)
    order, _ = _matched(seen, key, len(frames) == 1)
    return np.stack([seen.objects[number].centres for number in order], axis=1)


def _score_pair(frames: NDArray[np.uint8], key: AnswerKey) -> Score:
    seen = judge_pair(frames)
    if seen is None:
        alone = judge(frames)
        return Score(False, False, False, False, alone.acceleration, alone.flicker, False)
    order, agreed = _matched(seen, key, len(frames) == 1)
    one, other = seen.objects
    return Score(
        one.presence and other.presence,
        *agreed,
        (one.acceleration + other.acceleration) / 2.0,
        one.flicker,
        key.relation is None or key.relation in seen.relations[order[0]],
    )


def _matched(seen: PairVerdict, key: AnswerKey, picture: bool) -> tuple[tuple[int, int], tuple[bool, bool, bool]]:
    """Which seen object is which of the key, by colour first, and whether colours, shapes and motions agree."""
    found = []
    for order in ((0, 1), (1, 0)):
        parts = [_agreement(seen.objects[k], item, picture) for k, item in zip(order, key.objects, strict=True)]
        colours, shapes, motions = zip(*parts, strict=True)
        rank = (sum(colours), sum(shapes) + sum(motions))
        found.append((rank, order, (all(colours), all(shapes), all(motions))))
    _, order, agreed = max(found, key=lambda entry: entry[0])
    return order, agreed


def _outline(seen: Observation) -> Outline:
    """The shape where it is large enough to be seen."""
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
