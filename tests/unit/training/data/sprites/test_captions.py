"""Captions: forms, phrasings, what may be left out, and the prompts that people type."""

from __future__ import annotations

import re

import numpy as np
import pytest

from vgen.errors import RequestError
from vgen.training.data.sprites import AnswerKey, Background, ObjectKey, SpriteWorld, caption, vocabulary_corpus
from vgen.training.data.sprites.captions import FORMS, SEEN_FORMS, TEST_FORMS, forms_of
from vgen.training.data.sprites.grammar import VERBS
from vgen.training.data.sprites.keys import MOTIONS


def _key(motion: str | None, **more: object) -> AnswerKey:
    values = {"shape": "circle", "colour": "red", "size": "small", "motion": motion, **more}
    return AnswerKey((ObjectKey(**values),), Background("plain", "black"))  # type: ignore[arg-type]


def _many(key: AnswerKey, count: int = 400, **options: object) -> set[str]:
    rng = np.random.default_rng(0)
    return {caption(key, rng, **options) for _ in range(count)}  # type: ignore[arg-type]


def test_eight_forms_are_seen_and_two_are_for_the_test_split_only() -> None:
    assert len(SEEN_FORMS) >= 8 and len(TEST_FORMS) == 2 and set(FORMS) == {*SEEN_FORMS, *TEST_FORMS}
    assert not set(TEST_FORMS) & set(forms_of("train")) and not set(TEST_FORMS) & set(forms_of("validation"))
    assert set(TEST_FORMS) <= set(forms_of("test"))


def test_every_motion_has_six_phrasings() -> None:
    assert set(VERBS) == set(MOTIONS) - {"then"}
    for motion, verbs in VERBS.items():
        assert len(set(verbs)) >= 6, motion


def test_forms_give_different_sentences() -> None:
    rng = np.random.default_rng(1)
    key = _key("left", speed="slow")
    starts = {form: caption(key, rng, form=form, detail="detailed") for form in FORMS}
    assert len(set(starts.values())) == len(FORMS)


@pytest.mark.parametrize(
    ("motion", "prompt"),
    [
        ("left", "a red circle moves to the left on a black background"),
        ("left", "red circle moving left"),
        ("left", "a red circle that moves left"),
        ("bounce", "a red circle bounces"),
        ("up", "a small red circle is sliding upwards"),
        ("still", "a red circle does not move"),
        ("grow", "a red circle gets bigger"),
    ],
)
def test_everyday_prompts_are_among_the_captions(motion: str, prompt: str) -> None:
    rng, key = np.random.default_rng(0), _key(motion)
    assert any(caption(key, rng) == prompt for _ in range(40000))


def test_the_detailed_caption_says_everything() -> None:
    said = _many(_key("left", speed="quick"), form="plain", detail="detailed")
    for text in said:
        assert re.search(r"\b(small|little|tiny) red circle\b", text) and "black" in text and "left" in text
        assert re.search(r"\b(quickly|fast|rapidly)\b", text)


def test_the_brief_caption_says_colour_shape_and_motion() -> None:
    for text in _many(_key("left", speed="quick"), form="plain", detail="brief"):
        assert "red circle" in text and "left" in text and "black" not in text and "quickly" not in text


def test_pictures_have_no_motion() -> None:
    words = {word for text in _many(_key(None)) for word in text.split()}
    assert words == {word for text in _many(_key("left"), still=True) for word in text.split()}
    assert not words & {"left", "moves", "moving", "video", "clip", "still"}


def test_two_phases_are_said_in_their_order() -> None:
    for text in _many(_key("then", phases=("left", "up"))):
        later = min(place for word in ("up", "rises", "rising", "top") if (place := text.rfind(word)) >= 0)
        assert text.index("left") < later


def test_attributes_may_be_left_out_unless_required() -> None:
    free, required = _many(_key("left")), _many(_key("left"), require=("colour", "shape", "background"))
    assert any("red" not in text.split() for text in free) and any("circle" not in text for text in free)
    assert all("red circle" in text and "black" in text for text in required)


def test_articles_fit_and_words_are_plain() -> None:
    for text in vocabulary_corpus(1500):
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]|  |\{|\}| ,|^ | $", text), text
        assert text == text.lower()


def test_the_corpus_is_that_of_training() -> None:
    first, again = list(vocabulary_corpus(200)), list(vocabulary_corpus(200))
    assert first == again and len(set(first)) > 150
    assert not any(text.startswith("it is") for text in first)


def test_test_captions_use_words_that_training_knows() -> None:
    known = {word for text in vocabulary_corpus(3000) for word in re.findall(r"\w+", text)}
    key = SpriteWorld("test", 1).scene(0).key
    for form in TEST_FORMS:
        for text in _many(key, form=form):
            assert set(re.findall(r"\w+", text)) - known <= {"it", "in"}


def test_unknown_forms_and_details_are_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(RequestError, match="form='song'"):
        caption(_key("left"), rng, form="song")
    with pytest.raises(RequestError, match="detail='all'"):
        caption(_key("left"), rng, detail="all")
