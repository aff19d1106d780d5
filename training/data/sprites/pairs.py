"""Scenes of two objects: one left of or above the other, each with its own motion; a collision; one behind the other.

The first object of the key is left of, above, behind or on its way into the second. A collision is elastic and between
equal masses: along their common way the two swap velocities. Collisions and passages are complete in a clip of any
length, so their pace follows from their way; other objects keep the paces of single ones where they have the room.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vgen.training.data.sprites.bodies import (
    MARGIN,
    RADIUS_SHARE,
    UNITS,
    Body,
    Contact,
    Moving,
    Scene,
    draw_background,
    looks,
    set_moving,
    shared_room,
    sides_of,
)
from vgen.training.data.sprites.keys import (
    BASIC_MOTIONS,
    CARDINAL,
    DIRECTIONS,
    SIZES,
    SPEEDS,
    AnswerKey,
    Background,
    ObjectKey,
)
from vgen.training.data.sprites.motions import NARROW_FACTOR, SPEED_RANGE, Path
from vgen.training.data.sprites.palette import COLOURS, colour_distance
from vgen.training.data.sprites.shapes import far_edge
from vgen.training.data.sprites.splits import Draws, stream

# Relations, each as often as it is named, and motions of objects that keep apart.
SHARES: Final = (*("left of", "above") * 3, *("collides with", "behind") * 2)
PAIR_MOTIONS: Final = (*BASIC_MOTIONS, "grow", "shrink", "rotate")
OPPOSITE: Final = {"left": "right", "right": "left", "up": "down", "down": "up"}
GAP: Final = 5.0  # units between two objects that do not meet
CLEAR: Final = (4.5, 9.0)  # units between one that passes behind and the other, at either end of the clip
LANE: Final = 0.3  # of the front one's radius: how far from its centre the other passes
PAIR_CONTRAST: Final = 60.0  # smallest Lab distance of the two colours
HIT_PACE: Final = (0.9, 2.2)  # units per frame of the one that hits
HIT_WAY: Final = 14.0  # units that it would go in the whole clip at the least
HIT_RATIO: Final = (0.7, 1.4)  # of the paces of two that meet
HIT_TIME: Final = (0.42, 0.58)  # share of the clip

Motion = tuple[str, tuple[str, ...]]
Array = NDArray[np.float64]


def draw_pair(split: str, index: int, num_frames: int, canvas: tuple[float, float], triples: str) -> Scene:
    """The scene of a clip of tier 3, a pure function of its arguments; a picture shows the objects apart and at rest.

    `triples` is "seen" (both objects), "withheld" (at least one) or "all"; `canvas` is width and height in units.
    """
    first, second = (Draws(stream(name, split, 3, index)) for name in ("scene", "second"))
    background = draw_background(first, 3)
    relation: str | None = SHARES[first.pick("relation", len(SHARES))]
    way = CARDINAL[first.pick("way", len(CARDINAL))]
    items = _draw_items(relation, _motions(relation, way, first, second), background, first, second, triples)
    texture = (first["texture_a"], first["texture_b"], first["texture_c"])
    contact = None
    if num_frames > 1 and relation == "collides with":
        items, bodies, contact = _collision(items, way, num_frames, canvas, first)
    elif num_frames > 1 and relation == "behind":
        items, bodies = _passage(items, way, num_frames, canvas, first, second)
    else:
        relation = relation if relation in ("left of", "above") else None
        items, bodies = _apart(items, relation, num_frames, canvas, first, second)
    return Scene(AnswerKey(items, background, relation=relation), bodies, texture, contact)


def _motions(relation: str | None, way: str, first: Draws, second: Draws) -> tuple[Motion, Motion]:
    back = OPPOSITE[way]
    both = first["partner"] < 0.5  # the second one comes towards the first, and does not wait for it
    if relation == "collides with" and both:
        return ("then", (way, back)), ("then", (back, way))
    if relation == "collides with":
        return ("then", (way, "still")), ("then", ("still", way))
    if relation == "behind":
        return (way, ()), (back if both else "still", ())
    one, other = (PAIR_MOTIONS[draws.pick("motion", len(PAIR_MOTIONS))] for draws in (first, second))
    return (one, ()), (other, ())


@cache
def _differ(first: str, second: str) -> bool:
    return colour_distance(COLOURS[first], COLOURS[second]) >= PAIR_CONTRAST


def _draw_items(
    relation: str | None,
    motions: tuple[Motion, Motion],
    background: Background,
    first: Draws,
    second: Draws,
    triples: str,
) -> tuple[ObjectKey, ObjectKey]:
    """Colours that a judge can tell apart, shapes, and sizes that leave room for what happens."""
    place = first.pick("order", 2) if triples == "withheld" else 0
    found: dict[int, tuple[str, str]] = {}
    for number in (place, 1 - place):
        wanted = "all" if triples == "withheld" and number != place else triples
        taken = [colour for colour, _ in found.values()]
        pairs = looks(*motions[number], background, wanted)
        pairs = tuple(pair for pair in pairs if all(_differ(pair[0], colour) for colour in taken))
        found[number] = pairs[(first, second)[number].pick("pair", len(pairs))]
    sizes = [SIZES[draws.pick("size", len(SIZES))] for draws in (first, second)]
    if relation == "collides with":
        sizes[1] = sizes[0]  # equal masses look alike
    elif relation == "behind":
        sizes[0] = "small"  # on both sides of the other it must be seen alone
    items = []
    for number, draws in enumerate((first, second)):
        motion, phases = motions[number]
        colour, shape = found[number]
        speed = None
        if relation in ("left of", "above") and (motion in DIRECTIONS or motion == "rotate"):
            speed = SPEEDS[draws.pick("speed", len(SPEEDS))]
        size = "small" if motion == "grow" else sizes[number]
        items.append(ObjectKey(shape, colour, size, motion, speed, phases=phases))
    return items[0], items[1]


def _apart(
    items: tuple[ObjectKey, ObjectKey],
    relation: str | None,
    num_frames: int,
    canvas: tuple[float, float],
    first: Draws,
    second: Draws,
) -> tuple[tuple[ObjectKey, ObjectKey], tuple[Body, Body]]:
    """The first object before the second along an axis, all the time; in pictures without a relation either one."""
    one, other = (
        set_moving(item, draws, num_frames, canvas, NARROW_FACTOR)
        for item, draws in zip(items, (first, second), strict=True)
    )
    axis = {"left of": 0, "above": 1}.get(str(relation), first.pick("main", 2))
    one, other = _slowed(one, other, axis, canvas)
    swapped = relation is None and first["swap"] < 0.5
    near, far = (other, one) if swapped else (one, other)
    a, b = near.path.offset[:, axis], far.path.offset[:, axis]
    needed = (a - b).max() + near.sides[2 * axis + 1] + far.sides[2 * axis] - 2.0 * MARGIN + GAP
    top = canvas[axis] - far.sides[2 * axis + 1] - b.max()
    name = ("start_x", "start_y")[axis]
    nearer = first.between(name, near.sides[2 * axis] - a.min(), top - needed)
    farther = second.between(name, nearer + needed, top)
    bodies = []
    for moving, draws in ((one, first), (other, second)):
        cross = moving.path.offset[:, 1 - axis]
        lower, upper = moving.sides[2 - 2 * axis] - cross.min(), moving.sides[3 - 2 * axis] + cross.max()
        across = draws.between(("start_y", "start_x")[axis], lower, canvas[1 - axis] - upper)
        along = nearer if moving is near else farther
        start = (along, across) if axis == 0 else (across, along)
        bodies.append(Body(moving.path, start, moving.radius, (0.0, 0.0)))
    return (one.item, other.item), (bodies[0], bodies[1])


def _slowed(one: Moving, other: Moving, axis: int, canvas: tuple[float, float]) -> tuple[Moving, Moving]:
    """Both paths shortened alike until the objects can keep their order along an axis."""
    a, b = one.path.offset[:, axis], other.path.offset[:, axis]
    needed = b.max() - a.min() + (a - b).max()
    free = canvas[axis] - sum(m.sides[2 * axis] + m.sides[2 * axis + 1] for m in (one, other)) + 2.0 * MARGIN - GAP
    if needed <= free:
        return one, other
    found = [_on_path(moving, replace(moving.path, offset=moving.path.offset * (free / needed)))
             for moving in (one, other)]  # fmt: skip
    return found[0], found[1]


def _on_path(moving: Moving, path: Path) -> Moving:
    """Another path; a speed word that is no longer true is dropped."""
    item = moving.item
    if item.motion in DIRECTIONS and item.speed is not None:
        pace = float(np.linalg.norm(path.offset[-1] - path.offset[0])) / (len(path.offset) - 1)
        if not SPEED_RANGE[item.speed][0] - 1e-6 <= pace <= SPEED_RANGE[item.speed][1] + 1e-6:
            item = replace(item, speed=None)
    return moving._replace(item=item, path=path)


def _collision(
    items: tuple[ObjectKey, ObjectKey], way: str, num_frames: int, canvas: tuple[float, float], draws: Draws
) -> tuple[tuple[ObjectKey, ObjectKey], tuple[Body, Body], Contact]:
    """Two objects that meet in a frame of the clip and swap velocities."""
    direction, duration = np.array(DIRECTIONS[way]), num_frames - 1.0
    radius = UNITS * draws.between("radius", *RADIUS_SHARE[items[0].size])
    when = min(max(round(draws.between("when", *HIT_TIME) * duration), 1.0), max(duration - 1.0, 1.0))
    pace = max(draws.between("pace", *HIT_PACE), HIT_WAY / duration)
    partner = 0.0 if items[1].phases[0] == "still" else pace * draws.between("ratio", *HIT_RATIO)
    distance, touched = _touching(items[0].shape, items[1].shape, way)
    frames = np.arange(num_frames, dtype=np.float64)
    before, after = np.minimum(frames - when, 0.0), np.maximum(frames - when, 0.0)
    # Along the way, from where they touch.
    ways = [pace * before - partner * after, pace * after - partner * before]
    sides = [sides_of(item.shape, radius) for item in items]
    axis, forward = int(np.argmax(np.abs(direction))), bool(direction.sum() > 0)
    ends = sides[0][2 * axis + (not forward)] + sides[1][2 * axis + forward]
    share = min(1.0, (canvas[axis] - ends - distance * radius) / (ways[1].max() - ways[0].min()))
    offsets = [np.outer(way * share, direction) for way in ways]
    starts = [np.zeros(2), distance * radius * direction]
    bodies, shift = _together(items, offsets, starts, [radius, radius], canvas, draws)
    point = touched * radius + shift
    return items, bodies, Contact(when, (float(point[0]), float(point[1])))


def _touching(first: str, second: str, way: str) -> tuple[float, Array]:
    """Distance of the centres of two shapes of radius 1 that touch, the second one along `way`, and where they do."""
    direction = DIRECTIONS[way]
    lanes = np.linspace(-1.34, 1.34, 269)
    mine = far_edge(first, direction, lanes)
    reach = mine + far_edge(second, (-direction[0], -direction[1]), -lanes)
    best = np.flatnonzero(reach >= reach.max() - 1e-6)
    lane = best[len(best) // 2]
    point = mine[lane] * np.array(direction) + lanes[lane] * np.array((-direction[1], direction[0]))
    return float(reach.max()), point


def _passage(
    items: tuple[ObjectKey, ObjectKey],
    way: str,
    num_frames: int,
    canvas: tuple[float, float],
    first: Draws,
    second: Draws,
) -> tuple[tuple[ObjectKey, ObjectKey], tuple[Body, Body]]:
    """The first object from one side of the second to the other, behind it."""
    direction = np.array(DIRECTIONS[way])
    axis, forward = int(np.argmax(np.abs(direction))), bool(direction.sum() > 0)
    radii = [UNITS * draws.between("radius", *RADIUS_SHARE[item.size])
             for item, draws in zip(items, (first, second), strict=True)]  # fmt: skip
    sides = [sides_of(item.shape, radius) for item, radius in zip(items, radii, strict=True)]
    # Reach of each ahead and behind along the way, without the margin.
    ahead, rear = ([side[2 * axis + end] - MARGIN for side in sides] for end in (forward, not forward))
    both = ahead[0] + rear[0] + ahead[1] + rear[1]
    most = (canvas[axis] - both - ahead[0] - rear[0] - 2.0 * MARGIN) / 2.0
    clear = [min(first.between(name, *CLEAR), most) for name in ("clear_before", "clear_after")]
    share = 1.0 if items[1].motion == "still" else 1.0 - 0.5 * first.between("ratio", 0.8, 1.2)
    travel = both + sum(clear)
    progress = np.arange(num_frames) / (num_frames - 1.0)
    offsets = [np.outer(progress * travel * share, direction), np.outer(progress * travel * (share - 1.0), direction)]
    lane = first.between("lane", -LANE, LANE) * radii[1] * np.array((-direction[1], direction[0]))
    starts = [lane, (ahead[0] + clear[0] + rear[1]) * direction]
    bodies, _ = _together(items, offsets, starts, radii, canvas, first)
    return items, bodies


def _together(
    items: tuple[ObjectKey, ObjectKey],
    offsets: list[Array],
    starts: list[Array],
    radii: list[float],
    canvas: tuple[float, float],
    draws: Draws,
) -> tuple[tuple[Body, Body], Array]:
    """Shift two objects that keep their places to each other to where both stay whole inside; and the shift."""
    sides = [sides_of(item.shape, radius) for item, radius in zip(items, radii, strict=True)]
    places = [start + offset for start, offset in zip(starts, offsets, strict=True)]
    low, high = shared_room(sides, places, canvas)
    shift = np.array([draws.between(name, low[axis], high[axis]) for axis, name in enumerate(("start_x", "start_y"))])
    bodies = []
    for offset, start, radius in zip(offsets, starts, radii, strict=True):
        place = start + shift
        path = replace(Path.at_rest(len(offset)), offset=offset)
        bodies.append(Body(path, (float(place[0]), float(place[1])), radius, (0.0, 0.0)))
    return (bodies[0], bodies[1]), shift
