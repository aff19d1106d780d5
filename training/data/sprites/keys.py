"""Answer keys: what a clip shows, as words that a judge can check.

The words of an attribute are the ones of SPRITES: shapes, colours and backgrounds by name, motions by their base
word. A triple (colour, shape, motion) whose checksum divides by seven is withheld from training.
"""

from __future__ import annotations

import zlib
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any, Final

DIRECTIONS: Final[dict[str, tuple[float, float]]] = {
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "up": (0.0, -1.0),
    "down": (0.0, 1.0),
    "up-left": (-(0.5**0.5), -(0.5**0.5)),
    "up-right": (0.5**0.5, -(0.5**0.5)),
    "down-left": (-(0.5**0.5), 0.5**0.5),
    "down-right": (0.5**0.5, 0.5**0.5),
}
BASIC_MOTIONS: Final[tuple[str, ...]] = (*DIRECTIONS, "still")
MOTIONS: Final[tuple[str, ...]] = (
    *BASIC_MOTIONS,
    *("bounce", "circle", "zigzag", "grow", "shrink", "rotate", "change", "appear", "disappear", "then"),
)
SIZES: Final[tuple[str, ...]] = ("small", "large")
SPEEDS: Final[tuple[str, ...]] = ("slow", "quick")
BACKGROUND_KINDS: Final[tuple[str, ...]] = ("plain", "gradient", "striped", "checkered", "speckled")
PATTERNS: Final[tuple[str, ...]] = ("striped", "spotted")

CARDINAL: Final = ("left", "right", "up", "down")
# The two-phase motions, first phase and second phase.
PHASES: Final[tuple[tuple[str, str], ...]] = (
    *((first, second) for first in CARDINAL for second in CARDINAL if first != second),
    *((first, "still") for first in CARDINAL),
    *(("still", second) for second in CARDINAL),
    ("grow", "shrink"),
    ("shrink", "grow"),
)
WITHHELD_ONE_IN: Final = 7
# What two objects are to each other, the first one to the second.
RELATIONS: Final[tuple[str, ...]] = ("left of", "above", "collides with", "behind")


@dataclass(frozen=True)
class ObjectKey:
    """One object. `motion` is None in a picture; `speed` is None where the clip shows neither slow nor quick."""

    shape: str
    colour: str
    size: str
    motion: str | None
    speed: str | None = None
    colour_to: str | None = None
    phases: tuple[str, ...] = ()
    pattern: str | None = None

    @property
    def withheld(self) -> bool:
        """Whether this object's triple, or that of one of its phases, is kept out of training."""
        return is_withheld(self.colour, self.shape, self.motion, self.phases)


@dataclass(frozen=True)
class Background:
    """What is behind the objects: `colour_to` is the far colour of a gradient."""

    kind: str
    colour: str
    colour_to: str | None = None


@dataclass(frozen=True)
class AnswerKey:
    """What a clip shows. `camera` and `audio` are constant in tiers 1 to 3.

    Of two objects `relation` says what the first is to the second: a word of `RELATIONS`, or None where neither is
    said to be anywhere.
    """

    objects: tuple[ObjectKey, ...]
    background: Background
    camera: str = "still"
    audio: str | None = None
    relation: str | None = None

    @property
    def withheld(self) -> bool:
        """Whether any object shows a withheld triple."""
        return any(item.withheld for item in self.objects)

    def as_dict(self) -> dict[str, Any]:
        """Plain types for JSON, with `withheld` written out, and `relation` where there is one."""
        found = {**asdict(self), "withheld": self.withheld}
        if self.relation is None:
            del found["relation"]
        return found

    def at_rest(self) -> AnswerKey:
        """The same things in a picture: no motions, and no relation that takes time."""
        objects = tuple(replace(item, motion=None, phases=()) for item in self.objects)
        relation = self.relation if self.relation in ("left of", "above") else None
        return replace(self, objects=objects, relation=relation)


@cache
def is_withheld(colour: str, shape: str, motion: str | None, phases: tuple[str, ...] = ()) -> bool:
    """Whether a triple is withheld from training.

    A two-phase motion ("then") is withheld when one of its phases is: otherwise training would show the triple in half
    a clip. A picture (motion None) shows no motion, so nothing in it is withheld.
    """
    if motion is None:
        return False
    words = phases if motion == "then" else (motion,)
    return any(zlib.crc32(f"{colour}|{shape}|{word}".encode()) % WITHHELD_ONE_IN == 0 for word in words)
