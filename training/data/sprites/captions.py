"""Captions: sentence forms over the words of `grammar`, and prompts for evaluation.

Ten forms are seen in training; two more are drawn by `test` only. Attributes are left out at random; what is left
out is free.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final

from vgen.training.data.sprites.keys import AnswerKey
from vgen.training.data.sprites.pair_captions import say_pair
from vgen.training.data.sprites.phrases import Random, join, pick, say
from vgen.training.data.sprites.scene import draw_scene
from vgen.training.data.sprites.splits import check_choice, stream

JUDGED: Final = frozenset({"colour", "shape", "motion"})
DETAILS: Final = ("brief", "any", "detailed")


# Sentence forms with motion, over the pieces of `Parts`; a background may be missing in all of them.
FORMS: Final[dict[str, str]] = {
    "plain": "{0.noun} {0.finite} {0.background}",
    "progressive": "{0.noun} {0.progressive} {0.background}",
    "participle": "{0.noun} {0.participle} {0.background}",
    "telegram": "{0.bare} {0.participle}{0.aside}",
    "relative": "{0.noun} that {0.finite} {0.background}",
    "background_first": "{0.opening}{0.noun} {0.finite}",
    "there_is": "there is {0.new} {0.participle} {0.background}",
    "there_is_relative": "there is {0.new} that {0.progressive} {0.background}",
    "video_of": "a video of {0.new} {0.participle} {0.background}",
    "clip_where": "a clip where {0.noun} {0.finite} {0.background}",
    # The two forms of the test split; all their words are known from the others.
    "cleft": "it is {0.new} that {0.finite} {0.background}",
    "two_sentences": "{0.place} there is {0.new} and {0.pronoun} {0.finite}",
}
IMAGE_FORMS: Final = (
    *("{0.noun} {0.background}",) * 2,
    "there is {0.new} {0.background}",
    "a picture of {0.new} {0.background}",
    "an image of {0.new} {0.background}",
    "{0.bare}{0.aside}",
)
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
    check_choice("form", form or "plain", tuple(FORMS))
    check_choice("detail", detail, DETAILS)
    still = still or key.objects[0].motion is None
    if len(key.objects) == 1:
        parts = say(key, key.objects[0], rng, still, detail, frozenset(require))
    else:
        parts = say_pair(key.at_rest() if still else key, rng, detail, frozenset(require))
    template = pick(rng, IMAGE_FORMS) if still else FORMS[form or pick(rng, forms)]
    return join(*template.format(parts).split())


def vocabulary_corpus(count: int, seed: int = 0, tiers: tuple[int, ...] = (1, 2)) -> Iterator[str]:
    """Training captions of clips and pictures of some tiers, in turn, from index `seed` on; nothing is painted."""
    for place in range(count):
        index = seed + place
        tier = tiers[place % len(tiers)]
        key = draw_scene("train", tier, index, 17, 64, 64, "seen").key
        yield caption(key, stream("corpus", "train", tier, index), still=place % 8 == 7)
