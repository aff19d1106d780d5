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


def _verbs(table: str) -> tuple[Verb, ...]:
    """Verb phrases from a table of comma-separated "finite / participle / rest"."""
    return tuple(Verb(*(part.strip() for part in phrase.split("/"))) for phrase in table.split(","))


# "moves" is the everyday word: said as often as two others.
_TRAVEL: Final = _verbs(
    "moves / moving, moves / moving, slides / sliding, drifts / drifting, goes / going, travels / traveling, "
    "glides / gliding, heads / heading"
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
    verbs = [verb._replace(rest=way) for verb in _TRAVEL for way in ways]
    extra = {"up": Verb("rises", "rising"), "down": Verb("descends", "descending")}.get(direction)
    return (*verbs, *([extra] * 6 if extra else []))


VERBS: Final[dict[str, tuple[Verb, ...]]] = {
    **{direction: _travel(direction) for direction in DIRECTIONS},
    "still": _verbs(
        "stays / staying / still, does not move / not moving, is motionless / being motionless, "
        "remains / remaining / still, stands / standing / still, rests / resting / in place, "
        "stays / staying / in place, keeps / keeping / still"
    ),
    "bounce": _verbs(
        "bounces / bouncing, bounces / bouncing, bounces / bouncing / up and down, bounces / bouncing / like a ball, "
        "bounces / bouncing / on the ground, hops / hopping / up and down, jumps / jumping / up and down, "
        "falls and bounces / falling and bouncing"
    ),
    "circle": _verbs(
        "moves / moving / in a circle, circles / circling, circles / circling / around, "
        "goes / going / around in a circle, goes / going / around in circles, travels / traveling / along a circle, "
        "loops / looping / around, orbits / orbiting / around the center"
    ),
    "zigzag": _verbs(
        "zigzags / zigzagging, zigzags / zigzagging, moves / moving / in a zigzag, "
        "follows / following / a zigzag path, travels / traveling / in a zigzag, goes / going / in a zigzag line, "
        "weaves / weaving / from side to side, moves / moving / along a zigzag path"
    ),
    "grow": _verbs(
        "grows / growing, grows / growing / larger, gets / getting / bigger, becomes / becoming / larger, "
        "gets / getting / larger, expands / expanding, increases / increasing / in size, "
        "becomes / becoming / bigger"
    ),
    "shrink": _verbs(
        "shrinks / shrinking, shrinks / shrinking, gets / getting / smaller, becomes / becoming / smaller, "
        "reduces / reducing / in size, contracts / contracting, decreases / decreasing / in size"
    ),
    "rotate": _verbs(
        "rotates / rotating, rotates / rotating, spins / spinning, turns / turning / around, "
        "spins / spinning / around, rotates / rotating / in place, revolves / revolving, turns / turning / in place"
    ),
    "change": _verbs(
        "changes / changing / color to {to}, changes / changing / colour to {to}, turns / turning / {to}, "
        "becomes / becoming / {to}, changes / changing / from {colour} to {to}, "
        "changes / changing / its color from {colour} to {to}, goes / going / from {colour} to {to}, "
        "shifts / shifting / from {colour} to {to}"
    ),
    "appear": _verbs(
        "appears / appearing, appears / appearing, fades / fading / in, shows / showing / up, "
        "comes / coming / into view, becomes / becoming / visible, emerges / emerging, pops / popping / up"
    ),
    "disappear": _verbs(
        "disappears / disappearing, disappears / disappearing, vanishes / vanishing, fades / fading / out, "
        "fades / fading / away, goes / going / out of view, becomes / becoming / invisible"
    ),
}
# Second phases that say "stop" instead of "stay still".
STOPS: Final = _verbs("stops / stopping, stops / stopping / moving, comes / coming / to a stop")


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
HITS: Final = _verbs(
    "hits / hitting, hits / hitting, bumps / bumping / into, collides / colliding / with, crashes / crashing / into, "
    "runs / running / into, knocks / knocking / into, strikes / striking"
)
PASSES: Final = _verbs(
    "passes / passing, passes / passing, goes / going, moves / moving, slides / sliding, travels / traveling, "
    "crosses / crossing"
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
