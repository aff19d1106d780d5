"""Captions: sentence forms over the words of `grammar`, and prompts for evaluation.

Ten forms are seen in training; two more are drawn by `test` only. Attributes are left out at random; what is left
out is free.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Final

from vgen.errors import RequestError
from vgen.training.data.sprites.keys import AnswerKey
from vgen.training.data.sprites.pair_captions import say_pair
from vgen.training.data.sprites.phrases import Parts, Random, join, pick, say
from vgen.training.data.sprites.scene import draw_scene
from vgen.training.data.sprites.splits import stream

JUDGED: Final = frozenset({"colour", "shape", "motion"})
DETAILS: Final = ("brief", "any", "detailed")


# Sentence forms with motion. `background` may be empty in all of them.
def _plain(parts: Parts) -> str:
    return join(parts.noun, parts.finite, parts.background)


def _progressive(parts: Parts) -> str:
    return join(parts.noun, parts.progressive, parts.background)


def _participle(parts: Parts) -> str:
    return join(parts.noun, parts.participle, parts.background)


def _telegram(parts: Parts) -> str:
    return join(parts.bare, parts.participle) + (f", {parts.bare_background}" if parts.bare_background else "")


def _relative(parts: Parts) -> str:
    return join(parts.noun, "that", parts.finite, parts.background)


def _background_first(parts: Parts) -> str:
    place = f"{parts.background}, " if parts.background else ""
    return place + join(parts.noun, parts.finite)


def _there_is(parts: Parts) -> str:
    return join("there is", parts.new, parts.participle, parts.background)


def _there_is_relative(parts: Parts) -> str:
    return join("there is", parts.new, "that", parts.progressive, parts.background)


def _video_of(parts: Parts) -> str:
    return join("a video of", parts.new, parts.participle, parts.background)


def _clip_where(parts: Parts) -> str:
    return join("a clip where", parts.noun, parts.finite, parts.background)


# The two forms of the test split; all their words are known from the others.
def _cleft(parts: Parts) -> str:
    return join("it is", parts.new, "that", parts.finite, parts.background)


def _two_sentences(parts: Parts) -> str:
    place = parts.background or "in a video"
    return f"{place} there is {parts.new} and {parts.pronoun} {parts.finite}"


def _image_forms(parts: Parts) -> tuple[str, ...]:
    return (
        join(parts.noun, parts.background),
        join(parts.noun, parts.background),
        join("there is", parts.new, parts.background),
        join("a picture of", parts.new, parts.background),
        join("an image of", parts.new, parts.background),
        parts.bare + (f", {parts.bare_background}" if parts.bare_background else ""),
    )


FORMS: Final[dict[str, Callable[[Parts], str]]] = {
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
        key: what to say; one object or two.
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
    still = still or key.objects[0].motion is None
    if len(key.objects) == 1:
        parts = say(key, key.objects[0], rng, still, detail, frozenset(require))
    else:
        parts = say_pair(key.at_rest() if still else key, rng, detail, frozenset(require))
    if still:
        return pick(rng, _image_forms(parts))
    return FORMS[form or pick(rng, forms)](parts)


def vocabulary_corpus(count: int, seed: int = 0, tiers: tuple[int, ...] = (1, 2)) -> Iterator[str]:
    """Training captions, clips and pictures, without painting any: for a tokenizer.

    Args:
        count: how many captions.
        seed: where in the training split to start.
        tiers: taken in turn.
    """
    for place in range(count):
        index = seed + place
        tier = tiers[place % len(tiers)]
        key = draw_scene("train", tier, index, 17, 64, 64, "seen").key
        yield caption(key, stream("corpus", "train", tier, index), still=place % 8 == 7)
