"""Captions: sentence forms over the words of `grammar`, and prompts for evaluation.

Ten forms are seen in training; two more are drawn by `test` only. Attributes are left out at random; what is left
out is free.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from vgen.errors import RequestError
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
from vgen.training.data.sprites.scene import draw_scene
from vgen.training.data.sprites.splits import stream

Random = np.random.Generator
JUDGED: Final = frozenset({"colour", "shape", "motion"})
DETAILS: Final = ("brief", "any", "detailed")


@dataclass(frozen=True)
class _Parts:
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

    @property
    def bare(self) -> str:
        return _join(self.size, self.pattern, self.colour, self.shape)

    @property
    def noun(self) -> str:
        return _with_article(self.article, self.bare)

    @property
    def new(self) -> str:
        """The noun where it is introduced: never "the"."""
        return _with_article("one" if self.article == "one" else "a", self.bare)


def _join(*words: str) -> str:
    return " ".join(word for word in words if word)


def _with_article(article: str, noun: str) -> str:
    return f"an {noun}" if article == "a" and noun[0] in "aeiou" else _join(article, noun)


def _pick(rng: Random, options: tuple[str, ...] | list[str]) -> str:
    return options[int(rng.random() * len(options))]


def _spelled(rng: Random, colour: str) -> str:
    return _pick(rng, COLOUR_SPELLINGS.get(colour, (colour,)))


# Sentence forms with motion. `background` may be empty in all of them.
def _plain(parts: _Parts) -> str:
    return _join(parts.noun, parts.finite, parts.background)


def _progressive(parts: _Parts) -> str:
    return _join(parts.noun, parts.progressive, parts.background)


def _participle(parts: _Parts) -> str:
    return _join(parts.noun, parts.participle, parts.background)


def _telegram(parts: _Parts) -> str:
    return _join(parts.bare, parts.participle) + (f", {parts.bare_background}" if parts.bare_background else "")


def _relative(parts: _Parts) -> str:
    return _join(parts.noun, "that", parts.finite, parts.background)


def _background_first(parts: _Parts) -> str:
    place = f"{parts.background}, " if parts.background else ""
    return place + _join(parts.noun, parts.finite)


def _there_is(parts: _Parts) -> str:
    return _join("there is", parts.new, parts.participle, parts.background)


def _there_is_relative(parts: _Parts) -> str:
    return _join("there is", parts.new, "that", parts.progressive, parts.background)


def _video_of(parts: _Parts) -> str:
    return _join("a video of", parts.new, parts.participle, parts.background)


def _clip_where(parts: _Parts) -> str:
    return _join("a clip where", parts.noun, parts.finite, parts.background)


# The two forms of the test split; all their words are known from the others.
def _cleft(parts: _Parts) -> str:
    return _join("it is", parts.new, "that", parts.finite, parts.background)


def _two_sentences(parts: _Parts) -> str:
    place = parts.background or "in a video"
    return f"{place} there is {parts.new} and it {parts.finite}"


def _image_forms(parts: _Parts) -> tuple[str, ...]:
    return (
        _join(parts.noun, parts.background),
        _join(parts.noun, parts.background),
        _join("there is", parts.new, parts.background),
        _join("a picture of", parts.new, parts.background),
        _join("an image of", parts.new, parts.background),
        parts.bare + (f", {parts.bare_background}" if parts.bare_background else ""),
    )


FORMS: Final[dict[str, Callable[[_Parts], str]]] = {
    "plain": _plain,
    "progressive": _progressive,
    "participle": _participle,
    "telegram": _telegram,
    "relative": _relative,
    "background_first": _background_first,
    "there_is": _there_is,
    "there_is_relative": _there_is_relative,
    "video_of": _video_of,
    "clip_where": _clip_where,
    "cleft": _cleft,
    "two_sentences": _two_sentences,
}
TEST_FORMS: Final = ("cleft", "two_sentences")
SEEN_FORMS: Final = tuple(form for form in FORMS if form not in TEST_FORMS)


def forms_of(split: str) -> tuple[str, ...]:
    """The sentence forms that a split draws from."""
    return tuple(FORMS) if split == "test" else SEEN_FORMS


def caption(
    key: AnswerKey,
    rng: Random,
    *,
    form: str | None = None,
    still: bool = False,
    forms: tuple[str, ...] = SEEN_FORMS,
    detail: str = "any",
    require: Collection[str] = (),
) -> str:
    """Say what a clip shows, in one of many ways.

    Args:
        key: what to say; one object.
        rng: draws the words.
        form: a name in `FORMS`; None draws one of `forms`.
        still: the caption of a picture, without motion; also when the key has no motion.
        forms: the forms to draw from.
        detail: "brief" (colour, shape, motion), "detailed" (all that is known), "any" (a random part).
        require: attributes that must be said: "colour", "shape", "motion", "size", "speed", "background".
    Raises:
        RequestError: an unknown form or detail.
    """
    if form is not None and form not in FORMS:
        raise RequestError(f"form={form!r} is not a sentence form: use one of {', '.join(FORMS)}.")
    if detail not in DETAILS:
        raise RequestError(f"detail={detail!r} is not known: use one of {', '.join(DETAILS)}.")
    item = key.objects[0]
    still = still or item.motion is None
    parts = _say(key, item, rng, still, detail, frozenset(require))
    if still:
        return _pick(rng, _image_forms(parts))
    return FORMS[form or _pick(rng, forms)](parts)


_KEPT: Final = {"size": 0.45, "pattern": 0.5, "colour": 0.95, "shape": 0.95, "speed": 0.5, "background": 0.55}


def _say(key: AnswerKey, item: ObjectKey, rng: Random, still: bool, detail: str, require: frozenset[str]) -> _Parts:
    chances = dict(zip(_KEPT, rng.random(len(_KEPT)), strict=True))

    def said(attribute: str) -> bool:
        if detail == "any":
            return attribute in require or bool(chances[attribute] < _KEPT[attribute])
        return detail == "detailed" or attribute in ("colour", "shape") or attribute in require

    colour = item.colour if said("colour") else ""
    shape = item.shape if said("shape") else _pick(rng, ANY_SHAPE)
    if still:
        finite = progressive = participle = ""
    else:
        speed = _pick(rng, SPEED_WORDS[item.speed]) if item.speed and said("speed") else ""
        finite, progressive, participle = _motion(item, rng, speed)
    background = bare_background = ""
    if said("background"):
        colour_to = _spelled(rng, key.background.colour_to) if key.background.colour_to else None
        bare_background = _pick(rng, background_words(key.background, _spelled(rng, key.background.colour), colour_to))
        place = _pick(rng, ["on", "on", "on", "against", "in front of", "over"])
        background = f"{place} {_with_article('a', bare_background)}"
    return _Parts(
        article=_pick(rng, ["a", "a", "a", "a", "the", "one"]),
        size=_pick(rng, SIZE_WORDS[item.size]) if said("size") else "",
        pattern=_pick(rng, PATTERN_WORDS[item.pattern]) if item.pattern and said("pattern") else "",
        colour=colour,
        shape=shape,
        finite=finite,
        progressive=progressive,
        participle=participle,
        background=background,
        bare_background=bare_background,
    )


def _motion(item: ObjectKey, rng: Random, adverb: str) -> tuple[str, str, str]:
    """Finite, progressive and participle form of the motion."""
    if item.motion != "then":
        return _inflect(_verb(item, item.motion or "still", rng), adverb, rng.random())
    at_rest = item.phases[0] == "still"
    first = _inflect(_verb(item, item.phases[0], rng), "" if at_rest else adverb, rng.random())
    verb = _verb(item, item.phases[1], rng)
    if item.phases[1] == "still" and rng.random() < 0.7:
        verb = STOPS[int(rng.random() * len(STOPS))]
    second = _inflect(verb, adverb if at_rest else "", rng.random())
    draw = rng.random()
    if draw < 0.25:
        participle = f"first {first[2]}, then {second[2]}"
        return f"first {first[0]}, then {second[0]}", "is " + participle, participle
    if draw < 0.5:
        finite, progressive, participle = first
        before = _join("before", verb.participle, verb.rest, adverb if at_rest else "")
        return f"{finite} {before}", f"{progressive} {before}", f"{participle} {before}"
    joint = "and then" if draw < 0.75 else "then"
    return f"{first[0]} {joint} {second[0]}", f"{first[1]} {joint} {second[2]}", f"{first[2]} {joint} {second[2]}"


def _verb(item: ObjectKey, motion: str, rng: Random) -> Verb:
    verbs = VERBS[motion]
    verb = verbs[int(rng.random() * len(verbs))]
    return verb._replace(rest=verb.rest.format(colour=item.colour, to=item.colour_to))


def _inflect(verb: Verb, adverb: str, order: float) -> tuple[str, str, str]:
    """The three forms, with the adverb before the verb, after it, or at the end ("fast" never before)."""
    before, after, end = "", "", ""
    if adverb and order < 0.4 and adverb != "fast":
        before = adverb
    elif adverb and order < 0.7 and adverb != "fast":
        after = adverb
    else:
        end = adverb
    finite = _join(before, verb.finite, after, verb.rest, end)
    participle = _join(before, verb.participle, after, verb.rest, end)
    progressive = "is " + participle.replace("being ", "", 1)
    return finite, progressive, participle.replace("being ", "", 1)


def vocabulary_corpus(count: int, seed: int = 0) -> Iterator[str]:
    """Training captions of tiers 1 and 2, clips and pictures, without painting any: for a tokenizer.

    Args:
        count: how many captions.
        seed: where in the training split to start.
    """
    for place in range(count):
        index = seed + place
        tier = 1 + place % 2
        key = draw_scene("train", tier, index, 17, 64, 64, "seen").key
        yield caption(key, stream("corpus", "train", tier, index), still=place % 8 == 7)
