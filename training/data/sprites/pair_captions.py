"""Two objects in one sentence: the second one joins the verb phrase of the first, so every sentence form fits both.

"a red circle moves up" becomes "a red circle moves up while a blue square to its right stays still". Either object may
be the one that the sentence is about.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from vgen.training.data.sprites.grammar import HITS, PASSES, RELATIVE_PLACE, STOPS, Verb
from vgen.training.data.sprites.keys import AnswerKey, ObjectKey
from vgen.training.data.sprites.phrases import Parts, Random, inflect, join, pick, say, verb

_UNSAID = 0.3  # share of captions that leave out what the other object does, where that is free
_BOTH = 0.4  # of those of a collision: both objects are what the sentence is about


class _Said(NamedTuple):
    """One of the two objects: its key, its words, and what it is to the other."""

    item: ObjectKey
    parts: Parts
    relation: str

    @property
    def short(self) -> str:
        return join("the", self.parts.colour, self.parts.shape)


_INVERSE = {"left of": "right of", "above": "below", "collides with": "hit by", "behind": "in front of"}


def say_pair(key: AnswerKey, rng: Random, detail: str, require: frozenset[str]) -> Parts:
    """Draw the words for two objects; see `captions.caption` for the arguments. Colours are always said."""
    still = key.objects[0].motion is None
    words = [say(key, item, rng, still, detail, require | {"colour"}) for item in key.objects]
    full = detail != "any" or "motion" in require or rng.random() >= _UNSAID
    relation = key.relation or "with"
    first = _Said(key.objects[0], words[0], relation)
    second = _Said(key.objects[1], words[1], _INVERSE.get(relation, relation))
    # What the second one does alone would not say that the first one meets it.
    swap = rng.random() < 0.5 and (full or relation not in ("collides with", "behind"))
    about, other = (second, first) if swap else (first, second)
    if still:
        place = pick(rng, RELATIVE_PLACE[relation if not swap else second.relation].to) if key.relation else "and"
        found = _nouns(about, place, other)
    elif relation == "collides with":
        found = _collision(about, other, rng, full)
    elif relation == "behind":
        found = _passage(about, other, rng, full)
    else:
        found = _next_to(about, other, rng, full)
    return replace(found, background=words[0].background, bare_background=words[0].bare_background)


def _nouns(about: _Said, place: str, other: _Said) -> Parts:
    """ "red circle to the left of a blue square" as a noun."""
    return replace(about.parts, size="", pattern="", colour="", shape=join(about.parts.bare, place, other.parts.new))


def _verbs(parts: Parts, finite: str, progressive: str, participle: str) -> Parts:
    return replace(parts, finite=finite, progressive=progressive, participle=participle)


def _forms(parts: Parts) -> tuple[str, str, str]:
    return parts.finite, parts.progressive, parts.participle


def _followed(parts: Parts, *tails: str) -> Parts:
    """The three forms of the verb, each with its own words after it, or all with the same."""
    return _verbs(
        parts, *(f"{form}{tail}" for form, tail in zip(_forms(parts), tails * (3 // len(tails)), strict=True))
    )


def _next_to(about: _Said, other: _Said, rng: Random, full: bool) -> Parts:
    """Where the other object is, and what it does."""
    words, parts, noun = RELATIVE_PLACE[about.relation], other.parts, other.parts.new
    to, it = pick(rng, words.to), pick(rng, words.it)
    draw = rng.random()
    if not full:
        return _followed(about.parts, f", {to} {noun}" if draw < 0.5 else f", with {noun} {it}")
    if draw < 0.35:
        verb_phrase = parts.finite if rng.random() < 0.6 else parts.progressive
        return _followed(about.parts, f" while {noun} {it} {verb_phrase}")
    if draw < 0.6:
        return _followed(about.parts, *(f" and {noun} {it} {form}" for form in _forms(parts)))
    if draw < 0.8:
        return _followed(about.parts, f", {to} {noun} that {parts.finite}")
    return _followed(about.parts, f", with {noun} {it} {parts.participle}")


def _passage(about: _Said, other: _Said, rng: Random, full: bool) -> Parts:
    parts, noun = other.parts, other.parts.new
    front = about.relation == "in front of"
    place, back = ("in front of", "behind it") if front else ("behind", "in front of it")
    tail = f" that {parts.finite}" if full else ""
    draw = rng.random()
    if full and draw < 0.3:
        return _followed(about.parts, f" while {noun} {parts.finite} {back}")
    if front or draw < 0.7:
        return _followed(about.parts, f" {place} {noun}{tail}")
    passes = pick(rng, PASSES)
    forms = (passes.finite, passes.participle, passes.participle)
    return _followed(about.parts, *(f" and {form} {place} {noun}{tail}" for form in forms))


def _collision(about: _Said, other: _Said, rng: Random, full: bool) -> Parts:
    """Two motions that a hit parts: what is before it, the hit, and, where all is said, what comes of it."""
    hits = pick(rng, HITS)
    before, others = (_phase(said.item, 0, rng) for said in (about, other))
    noun = other.parts.new
    after = ""
    if full:
        mine, theirs = (_phase(said.item, 1, rng)[0] for said in (about, other))
        after = f", then it {mine} and {other.short} {theirs}"
    elif rng.random() < _BOTH:
        return _both_collide(about, other, rng)
    if about.relation == "hit by":
        tail = f" until {noun} that {others[0]} {join(hits.finite, hits.rest)} it{after}"
        return _followed(_verbs(about.parts, *before), tail)
    until = rng.random() < 0.3
    met = f"{noun} that {others[0]}" if full or rng.random() < 0.5 else noun
    found = _verbs(about.parts, *before)
    if until:
        return _followed(found, f" until it {join(hits.finite, hits.rest)} {met}{after}")
    forms = (hits.finite, hits.participle, hits.participle)
    return _followed(found, *(f" and {join(form, hits.rest)} {met}{after}" for form in forms))


def _both_collide(about: _Said, other: _Said, rng: Random) -> Parts:
    """ "a red circle and a blue square collide", without where they come from."""
    found = replace(_nouns(about, "and", other), pronoun="they")
    apart = pick(rng, ("", "", " and bounce apart", " and bounce off each other"))
    if apart and "still" in (*about.item.phases, *other.item.phases):
        apart = ""
    ending = apart.replace("bounce", "bouncing")
    if "still" not in (*about.item.phases, *other.item.phases) and rng.random() < 0.5:
        return _verbs(
            found,
            f"move toward each other and collide{apart}",
            f"are moving toward each other and colliding{ending}",
            f"moving toward each other and colliding{ending}",
        )
    return _verbs(found, f"collide{apart}", f"are colliding{ending}", f"colliding{ending}")


def _phase(item: ObjectKey, place: int, rng: Random) -> tuple[str, str, str]:
    """The three forms of one phase of a motion; a second one that is at rest may be said to stop."""
    chosen: Verb = verb(item, item.phases[place], rng)
    if place and item.phases[place] == "still" and rng.random() < 0.7:
        chosen = STOPS[int(rng.random() * len(STOPS))]
    return inflect(chosen, "", 1.0)
