"""Words of the captions: how each motion, background and attribute is said.

A verb phrase is (finite, participle, rest): "moves", "moving", "to the left". A participle that starts with
"being" belongs to an adjective and is left out after "is": "is being motionless" is said "is motionless".
"""

from __future__ import annotations

from typing import Final, NamedTuple

from vgen.training.data.sprites.keys import DIRECTIONS, Background


class Verb(NamedTuple):
    """A verb phrase in its two forms; `rest` follows either."""

    finite: str
    participle: str
    rest: str = ""


_TRAVEL: Final = (
    ("moves", "moving"),
    ("slides", "sliding"),
    ("drifts", "drifting"),
    ("goes", "going"),
    ("travels", "traveling"),
    ("glides", "gliding"),
    ("heads", "heading"),
)
_WAYS: Final[dict[str, tuple[str, ...]]] = {
    "left": ("left", "to the left", "to the left", "leftward", "leftwards", "toward the left", "from right to left"),
    "right": ("right", "to the right", "to the right", "rightward", "rightwards", "toward the right",
        "from left to right"),
    "up": ("up", "up", "upward", "upwards", "to the top", "toward the top"),
    "down": ("down", "down", "downward", "downwards", "to the bottom", "toward the bottom"),
}  # fmt: skip


def _diagonal(vertical: str, horizontal: str) -> tuple[str, ...]:
    place = {"up": ("upper", "top"), "down": ("lower", "bottom")}[vertical]
    return (
        f"{vertical} and to the {horizontal}",
        f"{vertical} and {horizontal}",
        f"diagonally {vertical} and to the {horizontal}",
        f"diagonally {vertical} {horizontal}",
        f"to the {place[0]} {horizontal}",
        f"toward the {place[1]} {horizontal}",
        f"to the {place[1]} {horizontal}",
    )


def _travel(direction: str) -> tuple[Verb, ...]:
    ways = _WAYS[direction] if direction in _WAYS else _diagonal(*direction.split("-"))
    # "moves" is the everyday word: said as often as two others.
    verbs = [Verb(*verb, way) for verb in (_TRAVEL[0], *_TRAVEL) for way in ways]
    extra = {"up": ("rises", "rising", ""), "down": ("descends", "descending", "")}.get(direction)
    return (*verbs, *([Verb(*extra)] * 6 if extra else []))


VERBS: Final[dict[str, tuple[Verb, ...]]] = {
    **{direction: _travel(direction) for direction in DIRECTIONS},
    "still": (
        Verb("stays", "staying", "still"),
        Verb("does not move", "not moving"),
        Verb("is motionless", "being motionless"),
        Verb("remains", "remaining", "still"),
        Verb("stands", "standing", "still"),
        Verb("rests", "resting", "in place"),
        Verb("stays", "staying", "in place"),
        Verb("keeps", "keeping", "still"),
    ),
    "bounce": (
        Verb("bounces", "bouncing"),
        Verb("bounces", "bouncing"),
        Verb("bounces", "bouncing", "up and down"),
        Verb("bounces", "bouncing", "like a ball"),
        Verb("bounces", "bouncing", "on the ground"),
        Verb("hops", "hopping", "up and down"),
        Verb("jumps", "jumping", "up and down"),
        Verb("falls and bounces", "falling and bouncing"),
    ),
    "circle": (
        Verb("moves", "moving", "in a circle"),
        Verb("circles", "circling"),
        Verb("circles", "circling", "around"),
        Verb("goes", "going", "around in a circle"),
        Verb("goes", "going", "around in circles"),
        Verb("travels", "traveling", "along a circle"),
        Verb("loops", "looping", "around"),
        Verb("orbits", "orbiting", "around the center"),
    ),
    "zigzag": (
        Verb("zigzags", "zigzagging"),
        Verb("zigzags", "zigzagging"),
        Verb("moves", "moving", "in a zigzag"),
        Verb("follows", "following", "a zigzag path"),
        Verb("travels", "traveling", "in a zigzag"),
        Verb("goes", "going", "in a zigzag line"),
        Verb("weaves", "weaving", "from side to side"),
        Verb("moves", "moving", "along a zigzag path"),
    ),
    "grow": (
        Verb("grows", "growing"),
        Verb("grows", "growing", "larger"),
        Verb("gets", "getting", "bigger"),
        Verb("becomes", "becoming", "larger"),
        Verb("gets", "getting", "larger"),
        Verb("expands", "expanding"),
        Verb("increases", "increasing", "in size"),
        Verb("becomes", "becoming", "bigger"),
    ),
    "shrink": (
        Verb("shrinks", "shrinking"),
        Verb("shrinks", "shrinking"),
        Verb("gets", "getting", "smaller"),
        Verb("becomes", "becoming", "smaller"),
        Verb("reduces", "reducing", "in size"),
        Verb("contracts", "contracting"),
        Verb("decreases", "decreasing", "in size"),
    ),
    "rotate": (
        Verb("rotates", "rotating"),
        Verb("rotates", "rotating"),
        Verb("spins", "spinning"),
        Verb("turns", "turning", "around"),
        Verb("spins", "spinning", "around"),
        Verb("rotates", "rotating", "in place"),
        Verb("revolves", "revolving"),
        Verb("turns", "turning", "in place"),
    ),
    "change": (
        Verb("changes", "changing", "color to {to}"),
        Verb("changes", "changing", "colour to {to}"),
        Verb("turns", "turning", "{to}"),
        Verb("becomes", "becoming", "{to}"),
        Verb("changes", "changing", "from {colour} to {to}"),
        Verb("changes", "changing", "its color from {colour} to {to}"),
        Verb("goes", "going", "from {colour} to {to}"),
        Verb("shifts", "shifting", "from {colour} to {to}"),
    ),
    "appear": (
        Verb("appears", "appearing"),
        Verb("appears", "appearing"),
        Verb("fades", "fading", "in"),
        Verb("shows", "showing", "up"),
        Verb("comes", "coming", "into view"),
        Verb("becomes", "becoming", "visible"),
        Verb("emerges", "emerging"),
        Verb("pops", "popping", "up"),
    ),
    "disappear": (
        Verb("disappears", "disappearing"),
        Verb("disappears", "disappearing"),
        Verb("vanishes", "vanishing"),
        Verb("fades", "fading", "out"),
        Verb("fades", "fading", "away"),
        Verb("goes", "going", "out of view"),
        Verb("becomes", "becoming", "invisible"),
    ),
}
# Second phases that say "stop" instead of "stay still".
STOPS: Final = (Verb("stops", "stopping"), Verb("stops", "stopping", "moving"), Verb("comes", "coming", "to a stop"))


class Place(NamedTuple):
    """How one object's place next to another is said: before the other one's noun, or behind a noun of its own."""

    to: tuple[str, ...]
    it: tuple[str, ...]


_TO_THE: Final = {
    side: (f"to the {side} of", f"to the {side} of", f"on the {side} of", f"{side} of") for side in ("left", "right")
}
_ON_ITS: Final = {
    side: (f"to its {side}", f"to its {side}", f"on its {side}", f"to the {side} of it") for side in ("left", "right")
}
_OVER: Final = (("above", "above", "over", "higher than"), ("above it", "above it", "over it", "higher up"))
_UNDER: Final = (("below", "below", "under", "beneath"), ("below it", "below it", "under it", "beneath it"))
# What the object is that the sentence is about; `it` places the other one.
RELATIVE_PLACE: Final[dict[str, Place]] = {
    "left of": Place(_TO_THE["left"], _ON_ITS["right"]),
    "right of": Place(_TO_THE["right"], _ON_ITS["left"]),
    "above": Place(_OVER[0], _UNDER[1]),
    "below": Place(_UNDER[0], _OVER[1]),
}
HITS: Final = (
    Verb("hits", "hitting"),
    Verb("hits", "hitting"),
    Verb("bumps", "bumping", "into"),
    Verb("collides", "colliding", "with"),
    Verb("crashes", "crashing", "into"),
    Verb("runs", "running", "into"),
    Verb("knocks", "knocking", "into"),
    Verb("strikes", "striking"),
)
PASSES: Final = (
    Verb("passes", "passing"),
    Verb("passes", "passing"),
    Verb("goes", "going"),
    Verb("moves", "moving"),
    Verb("slides", "sliding"),
    Verb("travels", "traveling"),
    Verb("crosses", "crossing"),
)

SPEED_WORDS: Final[dict[str, tuple[str, ...]]] = {
    "slow": ("slowly", "slowly", "gently"),
    "quick": ("quickly", "quickly", "fast", "rapidly"),
}
SIZE_WORDS: Final[dict[str, tuple[str, ...]]] = {
    "small": ("small", "small", "little", "tiny"),
    "large": ("large", "large", "big"),
}
PATTERN_WORDS: Final[dict[str, tuple[str, ...]]] = {
    "striped": ("striped", "patterned"),
    "spotted": ("spotted", "patterned"),
}
ANY_SHAPE: Final = ("shape", "object", "figure")
COLOUR_SPELLINGS: Final[dict[str, tuple[str, ...]]] = {
    "gray": ("gray", "gray", "grey"),
    "navy": ("navy", "navy", "navy blue", "dark blue"),
}


def background_words(background: Background, colour: str, colour_to: str | None) -> tuple[str, ...]:
    """Noun phrases for a background, without article; `colour` and `colour_to` as spelled."""
    if background.kind == "plain":
        return (f"{colour} background", f"{colour} background", f"plain {colour} background", f"{colour} backdrop")
    if background.kind == "gradient":
        return (
            f"gradient from {colour} to {colour_to}",
            f"{colour} and {colour_to} gradient",
            f"gradient background from {colour} to {colour_to}",
        )
    textured = (f"textured {colour} background", f"{background.kind} {colour} background")
    noun = {"striped": "stripes", "checkered": "checks", "speckled": "specks"}[background.kind]
    return (*textured, textured[1], f"{colour} background with {noun}")
