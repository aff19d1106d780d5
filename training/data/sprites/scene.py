"""From random numbers to a scene: the answer key and the paths of the objects, before any pixel is painted."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Final

import numpy as np

from vgen.training.data.sprites.bodies import (
    Body,
    Scene,
    canvas_units,
    draw_background,
    looks,
    set_moving,
    shared_room,
    sides_of,
    tones,
)
from vgen.training.data.sprites.keys import (
    BASIC_MOTIONS,
    DIRECTIONS,
    MOTIONS,
    PATTERNS,
    PHASES,
    SIZES,
    SPEEDS,
    AnswerKey,
    Background,
    ObjectKey,
)
from vgen.training.data.sprites.motions import factor_range
from vgen.training.data.sprites.pairs import draw_pair
from vgen.training.data.sprites.palette import COLOURS, MIN_CONTRAST, MIN_MIXED_CONTRAST, colour_distance, mix
from vgen.training.data.sprites.splits import Draws, stream

PATTERN_SHARE: Final = 0.25  # of the objects of tier 2


def draw_scene(split: str, tier: int, index: int, num_frames: int, height: int, width: int, triples: str) -> Scene:
    """The scene of one clip; a pure function of its arguments."""
    if tier == 3:
        return draw_pair(split, index, num_frames, canvas_units(height, width), triples)
    draws = Draws(stream("scene", split, tier, index))
    background = draw_background(draws, tier)
    item = _draw_object(draws, tier, background, triples)
    return _place(item, background, draws, num_frames, canvas_units(height, width))


def moved(scene: Scene, x: float, y: float, height: int, width: int) -> Scene:
    """A picture's scene with its objects elsewhere: `x` and `y` go from 0 to 1 over the room that they share."""
    sides = [sides_of(item.shape, body.radius) for item, body in zip(scene.key.objects, scene.bodies, strict=True)]
    offsets = [np.array(body.start) - scene.bodies[0].start for body in scene.bodies]
    low, high = shared_room(sides, [offset[None] for offset in offsets], canvas_units(height, width))
    place = low + np.array((x, y)) * (high - low)
    starts = [(float(across), float(down)) for across, down in (place + offset for offset in offsets)]
    return replace(scene, bodies=tuple(replace(body, start=at) for body, at in zip(scene.bodies, starts, strict=True)))


def turned(scene: Scene, turn: int, way: str, pace: float, height: int, width: int) -> Scene:
    """A scene of one object as a part of a longer one: up to frame `turn` it goes another way, then as its key says.

    Args:
        scene, turn: what no longer fits into the clip is left out.
        way, pace: a direction or "still"; units per frame, lowered until the object comes from inside the canvas.
        height, width: of the canvas, in pixels.
    """
    body, steps = scene.bodies[0], np.arange(turn, 0, -1.0)
    path = body.path
    count = len(path.alpha)
    direction = np.array(DIRECTIONS.get(way, (0.0, 0.0)))
    radius = body.radius * path.radius_scale[0]
    left, right, up, down = sides_of(scene.key.objects[0].shape, radius)
    canvas = canvas_units(height, width)
    place = np.array(body.start) + path.offset[0]
    low, high = np.array((left, up)), np.array((canvas[0] - right, canvas[1] - down))
    for axis in np.flatnonzero(np.abs(direction) > 0):
        behind = place[axis] - low[axis] if direction[axis] > 0 else high[axis] - place[axis]
        pace = min(pace, max(behind, 0.0) / (abs(direction[axis]) * turn))
    came = path.offset[0] - np.outer(steps * pace, direction)

    def held(values: np.ndarray) -> np.ndarray:
        return np.concatenate([np.full(turn, values[0]), values])[:count]

    path = replace(
        path,
        offset=np.concatenate([came, path.offset])[:count],
        radius_scale=held(path.radius_scale),
        angle=held(path.angle),
        alpha=held(path.alpha),
        mixed=held(path.mixed),
        impacts=[],
    )
    return replace(scene, bodies=(replace(body, path=path),))


@cache
def _targets(colour: str, background: Background) -> tuple[str, ...]:
    """The colours that `colour` can turn into without being lost on the way."""
    behind = tones(background)

    def stands_out(target: str) -> bool:
        way = [mix(COLOURS[colour], COLOURS[target], share) for share in (0.25, 0.5, 0.75)]
        return (
            min(colour_distance(COLOURS[target], tone) for tone in behind) >= MIN_CONTRAST
            and min(colour_distance(step, tone) for step in way for tone in behind) >= MIN_MIXED_CONTRAST
            and colour_distance(COLOURS[colour], COLOURS[target]) >= MIN_CONTRAST
        )

    return tuple(target for target in COLOURS if target != colour and stands_out(target))


def motion_of(split: str, tier: int, index: int) -> str:
    """The base word of a clip's motion, without the rest of its scene."""
    return _draw_motion(Draws(stream("scene", split, tier, index)), tier)


def _draw_motion(draws: Draws, tier: int) -> str:
    words = BASIC_MOTIONS if tier == 1 else (*MOTIONS, "then")
    return words[draws.pick("motion", len(words))]


def _draw_object(draws: Draws, tier: int, background: Background, triples: str) -> ObjectKey:
    motion = _draw_motion(draws, tier)
    phases: tuple[str, ...] = PHASES[draws.pick("phases", len(PHASES))] if motion == "then" else ()
    pairs = looks(motion, phases, background, triples)
    colour, shape = pairs[draws.pick("pair", len(pairs))]
    colour_to = None
    if motion == "change":
        targets = _targets(colour, background)
        colour_to = targets[draws.pick("colour_to", len(targets))]
    speed = None
    if motion in DIRECTIONS or motion == "rotate" or (motion == "then" and phases[0] not in ("grow", "shrink")):
        speed = SPEEDS[draws.pick("speed", len(SPEEDS))]
    pattern = None
    if tier == 2 and draws["pattern"] < PATTERN_SHARE:
        pattern = PATTERNS[draws.pick("pattern_kind", len(PATTERNS))]
    return ObjectKey(shape, colour, SIZES[draws.pick("size", len(SIZES))], motion, speed, colour_to, phases, pattern)


def _place(
    item: ObjectKey, background: Background, draws: Draws, num_frames: int, canvas: tuple[float, float]
) -> Scene:
    """Give the object a size, a path and a start from which it stays whole inside the canvas."""
    factors = factor_range(item.motion or "still", item.phases, item.size)
    item, path, radius, sides = set_moving(item, draws, num_frames, canvas, factors)
    low, high = path.offset.min(axis=0), path.offset.max(axis=0)
    start = (
        draws.between("start_x", sides.left - low[0], canvas[0] - sides.right - high[0]),
        draws.between("start_y", sides.up - low[1], canvas[1] - sides.down - high[1]),
    )
    texture = (draws["texture_a"], draws["texture_b"], draws["texture_c"])
    body = Body(path, start, radius, (draws["pattern_a"], draws["pattern_b"]))
    return Scene(AnswerKey((item,), background), (body,), texture)
