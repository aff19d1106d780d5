"""SpriteWorld: short captioned clips with an answer key, each a pure function of its index.

Nothing is stored: `SpriteWorld(split, tier).sample(index)` renders the clip again, in about a millisecond.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vgen.errors import RequestError, ShapeError
from vgen.training.data.sprites.bodies import UNITS, Body, Scene
from vgen.training.data.sprites.captions import JUDGED, caption, forms_of
from vgen.training.data.sprites.keys import BASIC_MOTIONS, MOTIONS, AnswerKey, ObjectKey
from vgen.training.data.sprites.palette import COLOURS
from vgen.training.data.sprites.render import backdrop, cover, paint, surface
from vgen.training.data.sprites.scene import draw_scene, motion_of, moved, turned
from vgen.training.data.sprites.splits import NOMINAL_LENGTH, SPLITS, TIERS, TRIPLES, check_choice, stream

MIN_SIDE: Final = 16
_CANDIDATES: Final = 32  # clips for one place where motions are emphasised


class Tracks(NamedTuple):
    """Where the objects are; pixels from the top left corner of the canvas, N objects.

    Attributes:
        centres: [N, F, 2] float32, centre of area as (x, y); pixel (row, column) has its middle at
            (column + 0.5, row + 0.5).
        radii: [N, F] float32; angles: [N, F] float32, radians, clockwise; alphas: [N, F] float32, 1 = opaque.
    """

    centres: NDArray[np.float32]
    radii: NDArray[np.float32]
    angles: NDArray[np.float32]
    alphas: NDArray[np.float32]


@dataclass(frozen=True)
class Event:
    """Something that happens at one instant: `time` in frames (also between two)."""

    kind: str
    time: float
    object_index: int
    position: tuple[float, float]


@dataclass
class SpriteClip:
    """One clip.

    Attributes:
        frames: uint8 [F, H, W, 3].
        caption: one caption of the split's forms.
        key: what the clip shows.
        tracks: where its objects are.
        masks: bool [F, H, W], pixels that an object covers at least by half.
        object_masks: bool [N, F, H, W], those of each object that no nearer one covers.
        frame_rate: frames per second.
        scene: what was painted.
        split, tier, index: where the clip stands.
    """

    frames: NDArray[np.uint8]
    caption: str
    key: AnswerKey
    tracks: Tracks
    masks: NDArray[np.bool_]
    object_masks: NDArray[np.bool_]
    frame_rate: float
    scene: Scene = field(repr=False)
    split: str
    tier: int
    index: int

    @cached_property
    def flow(self) -> NDArray[np.float32]:
        """Exact forward optical flow: float32 [F - 1, H, W, 2] as (x, y) pixels per frame.

        A pixel of an object moves as the point of the object in its middle; the background is at rest.
        """
        num_frames, height, width = self.masks.shape
        rows, columns = np.mgrid[0:height, 0:width].astype(np.float32) + 0.5
        flow = np.zeros((num_frames - 1, height, width, 2), dtype=np.float32)
        for number, masks in enumerate(self.object_masks):
            centres, radii, angles = (values[number] for values in self.tracks[:3])
            for frame in range(num_frames - 1):
                across, down = columns - centres[frame, 0], rows - centres[frame, 1]
                scale = radii[frame + 1] / radii[frame]
                turn = angles[frame + 1] - angles[frame]
                cos, sin = scale * np.cos(turn), scale * np.sin(turn)
                shift = centres[frame + 1] - centres[frame]
                ahead = np.stack([cos * across - sin * down - across, sin * across + cos * down - down], axis=-1)
                flow[frame] = np.where(masks[frame][..., None], ahead + shift, flow[frame])
        return flow

    @cached_property
    def events(self) -> tuple[Event, ...]:
        """Impacts of a bounce, and the collision of two objects (of the first one), in order of time."""
        times = np.arange(len(self.frames))
        found = []
        for number, (body, track) in enumerate(zip(self.scene.bodies, self.tracks.centres, strict=True)):
            floor = float(track[:, 1].max())
            for time in body.path.impacts:
                found.append(Event("impact", time, number, (float(np.interp(time, times, track[:, 0])), floor)))
        if self.scene.contact is not None:
            unit = min(self.frames.shape[1:3]) / UNITS
            across, down = self.scene.contact.position
            found.append(Event("collision", self.scene.contact.time, 0, (across * unit, down * unit)))
        return tuple(found)


class SpriteWorld:
    """A split of SpriteWorld.

    Args:
        split: "train", "validation" or "test".
        tier: 1, 2, 3, or a tuple of tiers, taken in turn; a tier named twice is taken twice.
        num_frames: of a clip; 1 = pictures.
        height, width: size of the canvas, at least 16; positions scale with the short side.
        frame_rate: frames per second; motions are defined per frame, so it changes no pixel.
        emphasis: how many times as often as it comes by itself a motion is shown, by its base word; clips of the other
            motions then stand for fewer. Only a tier of one object that has the motion changes.
        triples: "seen" or "withheld" keeps only clips of that kind; "all" mixes them. None: "seen" for training,
            "all" otherwise. Training never shows a withheld triple.
    Raises:
        RequestError: an unknown split, tier, motion or kind of triples, or withheld triples for training.
        ShapeError: a size that cannot be painted.
    """

    def __init__(
        self,
        split: str = "train",
        tier: int | tuple[int, ...] = 1,
        num_frames: int = 17,
        height: int = 64,
        width: int = 64,
        frame_rate: float = 8.0,
        triples: str | None = None,
        emphasis: Mapping[str, float] | None = None,
    ) -> None:
        check_choice("split", split, tuple(SPLITS))
        tiers = (tier,) if isinstance(tier, int) else tuple(tier)
        for wanted in tiers:
            if wanted not in TIERS:
                raise RequestError(f"tier={wanted} is not rendered: use one of {', '.join(map(str, TIERS))}.")
        if not tiers:
            raise RequestError("tier=() names no tier: use 1, 2, 3 or (1, 2).")
        triples = triples or ("seen" if split == "train" else "all")
        check_choice("triples", triples, TRIPLES)
        if split == "train" and triples != "seen":
            raise RequestError(f"triples={triples!r} is refused for split='train': training sees 'seen' only.")
        _check_shape(num_frames, height, width)
        if not frame_rate > 0.0:
            raise RequestError(f"frame_rate={frame_rate} must be above 0; use 8.")
        for motion, factor in (emphasis or {}).items():
            check_choice("emphasis", motion, MOTIONS)
            if not factor > 0.0:
                raise RequestError(f"emphasis of {motion}={factor} must be above 0; 1 leaves it as it is.")
        self.split, self.tiers, self.triples = split, tiers, triples
        self.emphasis = dict(emphasis or {})
        self.num_frames, self.height, self.width, self.frame_rate = num_frames, height, width, frame_rate

    def __len__(self) -> int:
        return NOMINAL_LENGTH[self.split]

    def __getitem__(self, index: int) -> SpriteClip:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.sample(index)

    def scene(self, index: int, num_frames: int | None = None) -> Scene:
        """The scene of clip `index`, unpainted: its key costs a fraction of its pixels."""
        if index < 0:
            raise RequestError(f"index={index} must not be negative; use 0 or more.")
        num_frames = self.num_frames if num_frames is None else num_frames
        _check_shape(num_frames, self.height, self.width)
        tier, place = self._locate(index)
        return draw_scene(self.split, tier, place, num_frames, self.height, self.width, self.triples)

    def sample(self, index: int, num_frames: int | None = None) -> SpriteClip:
        """Clip `index`.

        Args:
            index: 0 or more; also beyond `len`.
            num_frames: overrides the length; 1 paints a picture whose key has no motion.
        Raises:
            RequestError: a negative index.
            ShapeError: a length below 1.
        """
        scene = self.scene(index, num_frames)
        tier, place = self._locate(index)
        painted = _paint(scene, self.height, self.width)
        masks = np.asarray(painted.object_masks.any(axis=0))
        words = caption(scene.key, stream("caption", self.split, tier, place), forms=forms_of(self.split))
        return SpriteClip(
            painted.frames, words, scene.key, painted.tracks, masks, painted.object_masks, self.frame_rate, scene,
            self.split, tier, place,
        )  # fmt: skip

    def picture(self, index: int, x: float, y: float) -> NDArray[np.uint8]:
        """What clip `index` shows, at rest in front of its background: uint8 [1, H, W, 3].

        `x` and `y` are shares of the room that it has, 0 to 1; two objects keep their places to each other.
        """
        return _paint(moved(self.scene(index, 1), x, y, self.height, self.width), self.height, self.width).frames

    def turn(self, index: int, num_frames: int, turn: int, way: str, pace: float) -> NDArray[np.uint8]:
        """Clip `index` as a part of a longer one, uint8 [F, H, W, 3]: see `scene.turned`.

        Only a single object's straight motions and rest are turned into, and from another way; other clips are
        themselves.
        """
        scene = self.scene(index, num_frames)
        motion = scene.key.objects[0].motion if len(scene.bodies) == 1 else None
        if turn and motion in BASIC_MOTIONS and motion != way:
            scene = turned(scene, turn, way, pace, self.height, self.width)
        return _paint(scene, self.height, self.width).frames

    def _locate(self, index: int) -> tuple[int, int]:
        """The tier of a clip and its place in it; a tier named twice gives two clips a turn."""
        turn, place = divmod(index, len(self.tiers))
        tier = self.tiers[place]
        return tier, self._emphasised(tier, turn * self.tiers.count(tier) + self.tiers[:place].count(tier))

    def _emphasised(self, tier: int, place: int) -> int:
        """The clip that stands at `place`: the first of a few that its motion's emphasis lets pass."""
        if not self.emphasis or tier == 3 or (tier == 1 and not set(self.emphasis) & set(BASIC_MOTIONS)):
            return place
        rng, most = stream("emphasis", self.split, tier, place), max(1.0, *self.emphasis.values())
        candidates = range(place * _CANDIDATES, (place + 1) * _CANDIDATES)
        passes = (most * rng.random() < self.emphasis.get(motion_of(self.split, tier, one), 1.0) for one in candidates)
        return next((one for one, passed in zip(candidates, passes, strict=True) if passed), candidates[-1])


def _check_shape(num_frames: int, height: int, width: int) -> None:
    if num_frames < 1:
        raise ShapeError(f"num_frames={num_frames} must be at least 1; use 1.")
    for name, value in (("height", height), ("width", width)):
        if value < MIN_SIDE:
            raise ShapeError(f"{name}={value} must be at least {MIN_SIDE}; use {MIN_SIDE}.")


class _Painted(NamedTuple):
    frames: NDArray[np.uint8]
    tracks: Tracks
    object_masks: NDArray[np.bool_]


def _paint(scene: Scene, height: int, width: int) -> _Painted:
    background, count = scene.key.background, len(scene.bodies[0].path.alpha)
    frames = np.empty((count, height, width, 3), dtype=np.uint8)
    frames[:] = backdrop(background.kind, background.colour, background.colour_to, height, width, scene.texture)
    parts = [_lay(frames, item, body) for item, body in zip(scene.key.objects, scene.bodies, strict=True)]
    masks = np.stack([mask for _, mask in parts])
    for nearer in range(1, len(masks)):
        masks[:nearer] &= ~masks[nearer]
    return _Painted(
        frames, Tracks(*(np.stack(values) for values in zip(*(track for track, _ in parts), strict=True))), masks
    )


def _lay(frames: NDArray[np.uint8], item: ObjectKey, body: Body) -> tuple[Tracks, NDArray[np.bool_]]:
    """Paint one object over `frames`; its track, without the axis of objects, and its mask."""
    (count, height, width), path = frames.shape[:3], body.path
    unit = min(height, width) / UNITS
    centres = ((path.offset + body.start) * unit).astype(np.float32)
    radii = (path.radius_scale * body.radius * unit).astype(np.float32)
    angles = path.angle.astype(np.float32)
    alphas = path.alpha.astype(np.float32)
    colours = np.tile(np.array(COLOURS[item.colour], dtype=np.float32), (count, 1))
    if item.colour_to is not None:
        target = np.array(COLOURS[item.colour_to], dtype=np.float32)
        colours += path.mixed.astype(np.float32)[:, None] * (target - colours)
    windows = cover(item.shape, centres, radii, angles, height, width)
    shade = surface(item.pattern, windows, centres, radii, angles, body.surface) if item.pattern else None
    return Tracks(centres, radii, angles, alphas), paint(frames, windows, colours, alphas, shade)


def answer_prompts(
    split: str,
    tier: int | tuple[int, ...],
    count: int,
    triples: str | None = None,
    forms: tuple[str, ...] | None = None,
) -> list[tuple[str, AnswerKey]]:
    """`count` prompts whose text states all that is judged (colour, shape, motion), with their keys.

    `split`, `tier` and `triples` are those of `SpriteWorld`; `forms` are sentence forms, by default the split's.
    """
    world = SpriteWorld(split, tier, triples=triples)
    found = []
    for index in range(count):
        key = world.scene(index).key
        rng = stream("prompt", split, *world._locate(index))
        found.append((caption(key, rng, forms=forms or forms_of(split), require=JUDGED), key))
    return found
