"""From random numbers to a scene: the answer key and the path of the object, before any pixel is painted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Final

import numpy as np

from vgen.training.data.sprites.keys import (
    BACKGROUND_KINDS,
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
    is_withheld,
)
from vgen.training.data.sprites.motions import Path, build_path, factor_range, largest_scale
from vgen.training.data.sprites.palette import (
    BACKGROUNDS,
    COLOURS,
    MIN_CONTRAST,
    MIN_MIXED_CONTRAST,
    SECOND_TONES,
    colour_distance,
    mix,
)
from vgen.training.data.sprites.shapes import EXTENTS, SHAPES
from vgen.training.data.sprites.splits import Draws, stream

RADIUS_SHARE: Final = {"small": (0.085, 0.095), "large": (0.145, 0.155)}  # of the short side
UNITS: Final = 64.0  # the short side of the canvas in units of length
MARGIN: Final = 1.0  # units kept free at the border
PATTERN_SHARE: Final = 0.25  # of the objects of tier 2


@dataclass
class Scene:
    """What a clip will show; lengths in units of 1/64 of the short side."""

    key: AnswerKey
    path: Path
    start: tuple[float, float]
    radius: float
    texture: tuple[float, float, float]
    surface: tuple[float, float]


def draw_scene(split: str, tier: int, index: int, num_frames: int, height: int, width: int, triples: str) -> Scene:
    """The scene of one clip; a pure function of its arguments."""
    draws = Draws(stream("scene", split, tier, index))
    background = _draw_background(draws, tier)
    item = _draw_object(draws, tier, background, triples)
    return _place(item, background, draws, num_frames, height, width)


def moved(scene: Scene, x: float, y: float, height: int, width: int) -> Scene:
    """A picture's scene with its object elsewhere: `x` and `y` go from 0 to 1 over the room that it has."""
    extent = EXTENTS[scene.key.objects[0].shape]
    left, right, up, down = (side * scene.radius + MARGIN for side in extent[:4])
    unit = min(height, width) / UNITS
    across, below = width / unit - right, height / unit - down
    return replace(scene, start=(left + x * (across - left), up + y * (below - up)))


def turned(scene: Scene, turn: int, way: str, pace: float, height: int, width: int) -> Scene:
    """The scene as a stretch of a longer one: up to frame `turn` its object goes another way, then as its key says.

    Args:
        scene: of a clip.
        turn: the frame at which its own motion begins; what no longer fits into the clip is left out.
        way: a direction, or "still".
        pace: units a frame, lowered until the object comes from inside the canvas.
    """
    path, steps = scene.path, np.arange(turn, 0, -1.0)
    count = len(path.alpha)
    direction = np.array(DIRECTIONS.get(way, (0.0, 0.0)))
    radius = scene.radius * path.radius_scale[0]
    left, right, up, down = (side * radius + MARGIN for side in EXTENTS[scene.key.objects[0].shape][:4])
    unit = min(height, width) / UNITS
    place = np.array(scene.start) + path.offset[0]
    low, high = np.array((left, up)), np.array((width / unit - right, height / unit - down))
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
    return replace(scene, path=path)


def tones(background: Background) -> list[tuple[int, int, int]]:
    """The colours that a background is made of."""
    found = [BACKGROUNDS[background.colour]]
    if background.colour_to is not None:
        far = BACKGROUNDS[background.colour_to]
        found += [mix(found[0], far, 0.5), far]
    elif background.kind != "plain":
        found.append(SECOND_TONES[background.colour])
    return found


def _draw_background(draws: Draws, tier: int) -> Background:
    colours = tuple(BACKGROUNDS)
    place = draws.pick("background", len(colours))
    # Tier 2 is half plain.
    kinds = ("plain",) * 4 + BACKGROUND_KINDS[1:] if tier == 2 else ("plain",)
    kind = kinds[draws.pick("kind", len(kinds))]
    if kind != "gradient":
        return Background(kind, colours[place])
    far = (place + 1 + draws.pick("background_to", len(colours) - 1)) % len(colours)
    return Background(kind, colours[place], colours[far])


@cache
def _pairs(motion: str, phases: tuple[str, ...], background: Background, triples: str) -> tuple[tuple[str, str], ...]:
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
    pairs = _pairs(motion, phases, background, triples)
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


def _place(item: ObjectKey, background: Background, draws: Draws, num_frames: int, height: int, width: int) -> Scene:
    """Give the object a size, a path and a start from which it stays whole inside the canvas."""
    motion = item.motion or "still"
    radius = UNITS * draws.between("radius", *RADIUS_SHARE[item.size])
    factor = draws.between("factor", *factor_range(motion, item.phases, item.size))
    largest = radius * largest_scale(motion, item.phases, factor)
    extent = EXTENTS[item.shape]
    sides = (extent.turned,) * 4 if motion == "rotate" else extent[:4]
    left, right, up, down = (side * largest + MARGIN for side in sides)
    unit = min(height, width) / UNITS
    canvas = (width / unit, height / unit)
    if num_frames == 1:
        item = ObjectKey(item.shape, item.colour, item.size, None, pattern=item.pattern)
        path = Path(np.zeros((1, 2)), np.ones(1), np.zeros(1), np.ones(1), np.zeros(1))
        left, right, up, down = (side * radius + MARGIN for side in extent[:4])
    else:
        room = (canvas[0] - left - right, canvas[1] - up - down)
        path = build_path(motion, item.phases, item.speed, num_frames, room, factor, draws)
    if path.slowed:
        item = ObjectKey(item.shape, item.colour, item.size, motion, None, None, item.phases, item.pattern)
    low, high = path.offset.min(axis=0), path.offset.max(axis=0)
    start = (
        draws.between("start_x", left - low[0], canvas[0] - right - high[0]),
        draws.between("start_y", up - low[1], canvas[1] - down - high[1]),
    )
    texture = (draws["texture_a"], draws["texture_b"], draws["texture_c"])
    return Scene(AnswerKey((item,), background), path, start, radius, texture, (draws["pattern_a"], draws["pattern_b"]))
