"""Phrases about one object: its noun, its verb in three forms, and its background, ready for a sentence form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np

from vgen.training.data.sprites.grammar import (
    ANY_SHAPE,
    COLOUR_SPELLINGS,
    PATTERN_WORDS,
    SIZE_WORDS,
    SPEED_WORDS,
    STOPS,
    VERBS,
    Verb,
    background_words,
)
from vgen.training.data.sprites.keys import AnswerKey, ObjectKey

Random = np.random.Generator
Option = TypeVar("Option")


@dataclass(frozen=True)
class Parts:
    """The pieces of one sentence."""

    article: str
    size: str
    pattern: str
    colour: str
    shape: str
    finite: str
    progressive: str
    participle: str
    background: str  # "on a black background" or ""
    bare_background: str  # "black background" or ""
    pronoun: str = "it"

    @property
    def bare(self) -> str:
        return join(self.size, self.pattern, self.colour, self.shape)

    @property
    def noun(self) -> str:
        return with_article(self.article, self.bare)

    @property
    def new(self) -> str:
        """The noun where it is introduced: never "the"."""
        return with_article("one" if self.article == "one" else "a", self.bare)

    @property
    def aside(self) -> str:
        return f", {self.bare_background}" if self.bare_background else ""

    @property
    def opening(self) -> str:
        return f"{self.background}, " if self.background else ""

    @property
    def place(self) -> str:
        return self.background or "in a video"


def join(*words: str) -> str:
    """Words with a blank between them; empty ones are left out."""
    return " ".join(word for word in words if word)


def with_article(article: str, noun: str) -> str:
    """A noun behind its article; "a" becomes "an" where it must."""
    return f"an {noun}" if article == "a" and noun[0] in "aeiou" else join(article, noun)


def pick(rng: Random, options: Sequence[Option]) -> Option:
    """One of some words."""
    return options[int(rng.random() * len(options))]


def spelled(rng: Random, colour: str) -> str:
    return pick(rng, COLOUR_SPELLINGS.get(colour, (colour,)))


_KEPT: Final = {"size": 0.45, "pattern": 0.5, "colour": 0.95, "shape": 0.95, "speed": 0.5, "background": 0.55}


def say(key: AnswerKey, item: ObjectKey, rng: Random, still: bool, detail: str, require: frozenset[str]) -> Parts:
    """Draw the words for one object; see `captions.caption` for the arguments."""
    chances = dict(zip(_KEPT, rng.random(len(_KEPT)), strict=True))

    def said(attribute: str) -> bool:
        if detail == "any":
            return attribute in require or bool(chances[attribute] < _KEPT[attribute])
        return detail == "detailed" or attribute in ("colour", "shape") or attribute in require

    shape = item.shape if said("shape") else pick(rng, ANY_SHAPE)
    finite = progressive = participle = ""
    if not still:
        speed = pick(rng, SPEED_WORDS[item.speed]) if item.speed and said("speed") else ""
        finite, progressive, participle = motion_phrases(item, rng, speed)
    background = bare_background = ""
    if said("background"):
        colour_to = spelled(rng, key.background.colour_to) if key.background.colour_to else None
        bare_background = pick(rng, background_words(key.background, spelled(rng, key.background.colour), colour_to))
        place = pick(rng, ["on", "on", "on", "against", "in front of", "over"])
        background = f"{place} {with_article('a', bare_background)}"
    return Parts(
        article=pick(rng, ["a", "a", "a", "a", "the", "one"]),
        size=pick(rng, SIZE_WORDS[item.size]) if said("size") else "",
        pattern=pick(rng, PATTERN_WORDS[item.pattern]) if item.pattern and said("pattern") else "",
        colour=item.colour if said("colour") else "",
        shape=shape,
        finite=finite,
        progressive=progressive,
        participle=participle,
        background=background,
        bare_background=bare_background,
    )


def motion_phrases(item: ObjectKey, rng: Random, adverb: str) -> tuple[str, str, str]:
    """Finite, progressive and participle form of the motion."""
    if item.motion != "then":
        return inflect(verb(item, item.motion or "still", rng), adverb, rng.random())
    at_rest = item.phases[0] == "still"
    first = inflect(verb(item, item.phases[0], rng), "" if at_rest else adverb, rng.random())
    last = verb(item, item.phases[1], rng)
    if item.phases[1] == "still" and rng.random() < 0.7:
        last = STOPS[int(rng.random() * len(STOPS))]
    second = inflect(last, adverb if at_rest else "", rng.random())
    draw = rng.random()
    if draw < 0.25:
        participle = f"first {first[2]}, then {second[2]}"
        return f"first {first[0]}, then {second[0]}", "is " + participle, participle
    if draw < 0.5:
        finite, progressive, participle = first
        before = join("before", last.participle, last.rest, adverb if at_rest else "")
        return f"{finite} {before}", f"{progressive} {before}", f"{participle} {before}"
    joint = "and then" if draw < 0.75 else "then"
    return f"{first[0]} {joint} {second[0]}", f"{first[1]} {joint} {second[2]}", f"{first[2]} {joint} {second[2]}"


def verb(item: ObjectKey, motion: str, rng: Random) -> Verb:
    """One of the everyday phrases of a motion."""
    verbs = VERBS[motion]
    chosen = verbs[int(rng.random() * len(verbs))]
    return chosen._replace(rest=chosen.rest.format(colour=item.colour, to=item.colour_to))


def inflect(said: Verb, adverb: str, order: float) -> tuple[str, str, str]:
    """The three forms, with the adverb before the verb, after it, or at the end ("fast" never before)."""
    before, after, end = "", "", ""
    if adverb and order < 0.4 and adverb != "fast":
        before = adverb
    elif adverb and order < 0.7 and adverb != "fast":
        after = adverb
    else:
        end = adverb
    finite = join(before, said.finite, after, said.rest, end)
    participle = join(before, said.participle, after, said.rest, end)
    progressive = "is " + participle.replace("being ", "", 1)
    return finite, progressive, participle.replace("being ", "", 1)
