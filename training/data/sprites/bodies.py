"""What scenes are made of: objects in space, the background behind them, and which looks stand out from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vgen.training.data.sprites.keys import BACKGROUND_KINDS, AnswerKey, Background, ObjectKey, is_withheld
from vgen.training.data.sprites.motions import Path, build_path, largest_scale
from vgen.training.data.sprites.palette import (
    BACKGROUNDS,
    COLOURS,
    MIN_CONTRAST,
    SECOND_TONES,
    colour_distance,
    mix,
)
from vgen.training.data.sprites.shapes import EXTENTS, SHAPES
from vgen.training.data.sprites.splits import Draws

RADIUS_SHARE: Final = {"small": (0.085, 0.095), "large": (0.145, 0.155)}  # of the short side
UNITS: Final = 64.0  # the short side of the canvas in units of length
MARGIN: Final = 1.0  # units kept free at the border


@dataclass
class Body:
    """One object in space; lengths in units of 1/64 of the short side."""

    path: Path
    start: tuple[float, float]
    radius: float
    surface: tuple[float, float]


class Contact(NamedTuple):
    """Where and when two objects touch: frames, and units as (x, y)."""

    time: float
    position: tuple[float, float]


@dataclass
class Scene:
    """What a clip will show: a body for each object of the key, the farthest one first."""

    key: AnswerKey
    bodies: tuple[Body, ...]
    texture: tuple[float, float, float]
    contact: Contact | None = None


class Sides(NamedTuple):
    """The room that an object takes around its centre, in units, with the margin."""

    left: float
    right: float
    up: float
    down: float


class Moving(NamedTuple):
    """An object that is to be placed: its key, which may have lost its speed, and what it needs."""

    item: ObjectKey
    path: Path
    radius: float
    sides: Sides


def canvas_units(height: int, width: int) -> tuple[float, float]:
    """Width and height of the canvas in units."""
    unit = min(height, width) / UNITS
    return width / unit, height / unit


def sides_of(shape: str, radius: float, turning: bool = False) -> Sides:
    """The room that a shape of that radius takes."""
    extent = EXTENTS[shape]
    sides = (extent.turned,) * 4 if turning else extent[:4]
    return Sides(*(side * radius + MARGIN for side in sides))


def shared_room(
    sides: Sequence[Sides], places: Sequence[NDArray[np.float64]], canvas: tuple[float, float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Least and greatest shift [2] of several objects' places [F, 2] that keeps them all whole inside the canvas."""
    low, high = np.full(2, -np.inf), np.full(2, np.inf)
    for side, place in zip(sides, places, strict=True):
        low = np.maximum(low, (side.left, side.up) - place.min(axis=0))
        high = np.minimum(high, (canvas[0] - side.right, canvas[1] - side.down) - place.max(axis=0))
    return low, high


def at_rest(item: ObjectKey) -> ObjectKey:
    """An object as a picture shows it."""
    return ObjectKey(item.shape, item.colour, item.size, None, pattern=item.pattern)


def set_moving(
    item: ObjectKey, draws: Draws, num_frames: int, canvas: tuple[float, float], factors: tuple[float, float]
) -> Moving:
    """Give an object a size and a path that fits the canvas; it loses its speed word where the way is too short for it.

    `factors` is the range of the area factor of growing and shrinking.
    """
    motion = item.motion or "still"
    radius = UNITS * draws.between("radius", *RADIUS_SHARE[item.size])
    if num_frames == 1:
        return Moving(at_rest(item), Path.at_rest(1), radius, sides_of(item.shape, radius))
    factor = draws.between("factor", *factors)
    largest = radius * largest_scale(motion, item.phases, factor)
    sides = sides_of(item.shape, largest, motion == "rotate")
    room = (canvas[0] - sides.left - sides.right, canvas[1] - sides.up - sides.down)
    path = build_path(motion, item.phases, item.speed, num_frames, room, factor, draws)
    if path.slowed:
        item = replace(item, speed=None)
    return Moving(item, path, radius, sides)


def tones(background: Background) -> list[tuple[int, int, int]]:
    """The colours that a background is made of."""
    found = [BACKGROUNDS[background.colour]]
    if background.colour_to is not None:
        far = BACKGROUNDS[background.colour_to]
        found += [mix(found[0], far, 0.5), far]
    elif background.kind != "plain":
        found.append(SECOND_TONES[background.colour])
    return found


def draw_background(draws: Draws, tier: int) -> Background:
    """The background of a clip."""
    colours = tuple(BACKGROUNDS)
    place = draws.pick("background", len(colours))
    # From tier 2 on half are plain.
    kinds = ("plain",) * 4 + BACKGROUND_KINDS[1:] if tier > 1 else ("plain",)
    kind = kinds[draws.pick("kind", len(kinds))]
    if kind != "gradient":
        return Background(kind, colours[place])
    far = (place + 1 + draws.pick("background_to", len(colours) - 1)) % len(colours)
    return Background(kind, colours[place], colours[far])


@cache
def looks(motion: str, phases: tuple[str, ...], background: Background, triples: str) -> tuple[tuple[str, str], ...]:
    """The (colour, shape) pairs that a motion may have: those in the wanted triples that stand out."""
    behind = tones(background)
    pairs = (
        (colour, shape)
        for colour in COLOURS
        if min(colour_distance(COLOURS[colour], tone) for tone in behind) >= MIN_CONTRAST
        for shape in SHAPES
        # A plain disc that turns looks like one at rest.
        if not (motion == "rotate" and shape == "circle")
    )
    wanted = {"all": (True, False), "withheld": (True,), "seen": (False,)}[triples]
    return tuple(pair for pair in pairs if is_withheld(*pair, motion, phases) in wanted)
