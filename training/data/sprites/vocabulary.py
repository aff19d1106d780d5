"""What the captions can say: their words, and one sentence for people."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from vgen.request.trained import words_of
from vgen.training.data.sprites.captions import caption, forms_of
from vgen.training.data.sprites.grammar import VERBS
from vgen.training.data.sprites.keys import BASIC_MOTIONS, DIRECTIONS, MOTIONS
from vgen.training.data.sprites.palette import BACKGROUNDS, COLOURS
from vgen.training.data.sprites.scene import draw_scene
from vgen.training.data.sprites.shapes import SHAPES
from vgen.training.data.sprites.splits import stream

_SCENES: Final = 900
_CAPTIONS: Final = 16  # of each scene: the rarest word comes in one caption of two thousand


def vocabulary(tiers: Collection[int] = (1, 2)) -> list[str]:
    """Every word of the captions of some tiers, in all sentence forms, sorted."""
    found: set[str] = set()
    for place in range(_SCENES):
        tier = sorted(tiers)[place % len(tiers)]
        key = draw_scene("train", tier, place, 17, 64, 64, "seen").key
        for again in range(_CAPTIONS):
            words = stream("vocabulary", "train", tier, place * _CAPTIONS + again)
            found.update(words_of(caption(key, words, still=again == 0, forms=forms_of("test"))))
    return sorted(found)


def world(tiers: Collection[int] = (1, 2)) -> str:
    """What clips of some tiers show, in one sentence."""
    motions = BASIC_MOTIONS if max(tiers) == 1 else MOTIONS
    verbs = [VERBS[name][0] for name in motions if name in VERBS and name not in DIRECTIONS]
    does = [f"{verb.finite} {verb.rest}".strip().removesuffix(" to {to}") for verb in verbs]
    return (
        f"It knows {'one or two of' if 3 in tiers else 'one'} {_either(SHAPES)} in {_either(COLOURS)}, on a background "
        f"in {_either(BACKGROUNDS)}, that {_either(['moves left, right, up, down or diagonally', *does])}."
    )


def _either(names: Collection[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} or {last}"
