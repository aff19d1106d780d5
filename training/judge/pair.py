"""What the judge sees of two objects: each one's pixels in every frame, separated by colour and followed over time.

Where one covers the other neither is measured: places, shapes and sizes come from the frames that show both whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vgen.training.data.sprites.palette import COLOURS, rgb_to_lab
from vgen.training.judge.pixels import (
    MIN_AREA,
    Flags,
    Floats,
    Foreground,
    Observation,
    components,
    find_foreground,
    largest_parts,
    measure,
    nearest_colours,
    widened,
)

# Frozen thresholds; see `judge_pixels`. Lengths in units of 1/64 of the short side.
EDGE: Final = 1.0  # thickness of the soft edge, whose colour is no object's own
OWN_FRAMES: Final = 0.1  # share of the frames in which a colour must have a part of its own
MIXED_SHARE: Final = 0.05  # of a part's inner pixels in the other colour: from there on both objects are in it
BEFORE: Final = 3.0  # between the centres along an axis, from which on one object is before the other ...
BEFORE_SHARE: Final = 0.9  # ... in that share of the frames
MEETING: Final = 3.0  # between two objects that meet, at the most
# Of its usual area: an object that shows no more, and loses more than the other, is behind it.
COVERED_AREA: Final = 0.6
WHOLE_AREA: Final = 0.8  # of its usual area, that each of two that meet shows all the time
TOUCHING_AREA: Final = 0.9  # of its usual area, that each must show where they touch, to be measured there
HIDDEN_REACH: Final = 2.0  # around an object, within which another one is hidden by it


@dataclass
class PairObservation:
    """Two objects, frame by frame.

    Attributes:
        objects: what is measured of each; visible only where both are whole.
        explained: [2, F] bool, seen, or hidden by the other one.
        relations: what the first is to the second, and the second to the first, as words of `RELATIONS`.
    """

    objects: tuple[Observation, Observation]
    explained: Flags
    relations: tuple[frozenset[str], frozenset[str]]


def observe_pair(frames: NDArray[np.uint8]) -> PairObservation | None:
    """Find two objects of different colours in uint8 [F, H, W, 3]; None unless some frame shows two apart."""
    front = find_foreground(frames)
    labels = components(front.seen)
    inner = front.seen & ~widened(~front.seen, max(1, round(EDGE * front.unit)))
    references = _two_colours(front, labels, inner)
    if references is None:
        return None
    named = np.full(labels.shape, -1, np.int8)
    mixed = [
        _name_pixels(front, frame, labels[frame], inner[frame], references, named[frame])
        for frame in range(len(frames))
    ]
    places, alone = _largest(named, labels, np.array(mixed), front.unit)
    seen = places.any(axis=(2, 3)).all(axis=0)
    apart = seen & ~(widened(places[0], 1) & places[1]).any(axis=(1, 2))
    if not apart.any():
        return None
    sizes = places.sum(axis=(2, 3)).astype(np.float64)
    usual = np.median(sizes[:, apart], axis=1, keepdims=True)
    shares = sizes / usual
    whole = apart | (seen & (shares >= TOUCHING_AREA).all(axis=0))
    one, other = (measure(front, places[k] & whole[:, None, None], alone[k], places[1 - k]) for k in (0, 1))
    explained = np.stack([places[k].any(axis=(1, 2)) | _hidden(places[k], places[1 - k], front.unit) for k in (0, 1)])
    relations = _relations((one, other), places, apart, usual[:, 0], shares, front.unit)
    return PairObservation((one, other), explained, relations)


def _two_colours(front: Foreground, labels: NDArray[np.int64], inner: Flags) -> Floats | None:
    """[2, 3] Lab of the colours that the inner pixels of most parts have, each part counted by its frame."""
    frames_of: dict[int, set[int]] = {}
    pixels_of: dict[int, list[NDArray[np.uint8]]] = {}
    for frame in map(int, np.flatnonzero(inner.any(axis=(1, 2)))):
        pixels, parts = front.smooth[frame][inner[frame]], labels[frame][inner[frame]]
        nearest = nearest_colours(pixels)
        for part in np.unique(parts):
            mine = parts == part
            if (labels[frame] == part).sum() < MIN_AREA * front.unit**2:
                continue
            counts = np.bincount(nearest[mine], minlength=len(COLOURS))
            colour = int(counts.argmax())
            frames_of.setdefault(colour, set()).add(int(frame))
            pixels_of.setdefault(colour, []).append(pixels[mine & (nearest == colour)])
    least = max(1.0, OWN_FRAMES * len(labels))
    found = [colour for colour, where in frames_of.items() if len(where) >= least]
    found.sort(key=lambda colour: (-len(frames_of[colour]), -sum(map(len, pixels_of[colour]))))
    if len(found) < 2:
        return None
    return np.stack([np.median(rgb_to_lab(np.concatenate(pixels_of[colour])), axis=0) for colour in found[:2]])


def _name_pixels(
    front: Foreground, frame: int, labels: NDArray[np.int64], inner: Flags, references: Floats, named: NDArray[np.int8]
) -> bool:
    """Write the object of every pixel of a frame into `named` [H, W]; returns whether a part was divided."""
    divided = False
    for part in np.unique(labels[labels >= 0]):
        mine = labels == part
        if mine.sum() < MIN_AREA * front.unit**2:
            continue
        core = mine & inner
        if not core.any():
            core = mine & (front.distance[frame] >= 0.7 * np.percentile(front.distance[frame][mine], 90))
        pixels = rgb_to_lab(front.smooth[frame][core])
        nearest = np.linalg.norm(pixels[:, None] - references, axis=-1).argmin(axis=1).astype(np.int8)
        share = float(nearest.mean())
        if min(share, 1.0 - share) < MIXED_SHARE:
            named[mine] = int(share > 0.5)
            continue
        named[core] = nearest
        _spread(named, mine)
        divided = True
    return divided


def _spread(named: NDArray[np.int8], part: Flags) -> None:
    """Name the unnamed pixels of a part, in place, as those next to them."""
    while True:
        open_pixels = part & (named < 0)
        if not open_pixels.any():
            return
        for number in (0, 1):
            named[open_pixels & (named < 0) & widened(named == number, 1)] = number


def _largest(named: NDArray[np.int8], labels: NDArray[np.int64], divided: Flags, unit: float) -> tuple[Flags, Flags]:
    """[2, F, H, W], the largest connected pixels of each object; [2, F], whether nothing else is nearly as large."""
    found = []
    for number in (0, 1):
        mine, parts = named == number, labels.copy()
        parts[divided] = components(mine[divided])
        found.append(largest_parts(mine, parts, unit))
    return np.stack([places for places, _ in found]), np.stack([alone for _, alone in found])


def _hidden(mine: Flags, other: Flags, unit: float) -> Flags:
    """[F], frames in which one object is not seen, and the other is where it should be between those where it is."""
    seen = np.asarray(mine.any(axis=(1, 2)))
    times = np.flatnonzero(seen)
    hidden = np.zeros(len(seen), np.bool_)
    middles = np.array([np.argwhere(mine[time]).mean(axis=0) for time in times])
    reach = widened(other, round(HIDDEN_REACH * unit))
    for frame in np.flatnonzero(~seen):
        if len(times) and times[0] < frame < times[-1]:
            row, column = (round(float(np.interp(frame, times, middles[:, axis]))) for axis in (0, 1))
            hidden[frame] = reach[frame, row, column]
    return hidden


def _relations(
    objects: tuple[Observation, Observation],
    places: Flags,
    apart: Flags,
    usual: NDArray[np.float64],
    shares: NDArray[np.float64],
    unit: float,
) -> tuple[frozenset[str], frozenset[str]]:
    """What each object is to the other, by their pixels `places` [2, F, H, W] where they do not touch."""
    times = np.flatnonzero(apart)
    between = slice(times[0], times[-1] + 1)
    together = ~apart[between]
    least = shares[:, between][:, together].min(axis=1) if together.any() else np.ones(2)
    lost = usual * (1.0 - least)
    near = (widened(places[0], round(MEETING * unit)) & places[1])[between].any()
    found: tuple[set[str], set[str]] = (set(), set())
    for number, words in enumerate(found):
        if least[number] <= COVERED_AREA and lost[number] > lost[1 - number]:
            words.add("behind")
        if near and least.min() >= WHOLE_AREA:
            words.add("collides with")
        steps = objects[1 - number].centres[apart] - objects[number].centres[apart]
        words.update(
            word for axis, word in enumerate(("left of", "above")) if (steps[:, axis] >= BEFORE).mean() >= BEFORE_SHARE
        )
    return frozenset(found[0]), frozenset(found[1])
