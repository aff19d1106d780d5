"""Splits and random numbers: every draw of a clip is a function of (split, tier, index) and a stream name."""

from __future__ import annotations

import zlib
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vgen.errors import RequestError

SPLITS: Final[dict[str, int]] = {"train": 0, "validation": 1, "test": 2}
NOMINAL_LENGTH: Final[dict[str, int]] = {"train": 50_000, "validation": 2_000, "test": 2_000}
TIERS: Final[tuple[int, ...]] = (1, 2, 3)
TRIPLES: Final[tuple[str, ...]] = ("seen", "withheld", "all")
_WORLD: Final = zlib.crc32(b"SpriteWorld")


def stream(name: str, split: str, tier: int, index: int) -> np.random.Generator:
    """A generator of its own for each (name, split, tier, index).

    The four numbers are the whole key of a counter-based generator, so no two streams share a draw.
    """
    key = np.array([_WORLD << 32 | zlib.crc32(name.encode()), (SPLITS[split] << 56) | (tier << 48) | index], np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


class Draws:
    """Uniform numbers in [0, 1) by name: adding a name never changes what the others give."""

    names: Final = (
        *("motion", "pair", "phases", "size", "radius", "speed", "rate", "start_x", "start_y"),
        *("background", "background_to", "kind", "texture_a", "texture_b", "texture_c"),
        *("colour_to", "pattern", "pattern_kind", "pattern_a", "pattern_b"),
        *("turn", "phase", "amplitude", "period", "drift", "drift_sign", "main", "rebound"),
        *("factor", "when", "how_long"),
        *("relation", "way", "partner", "order", "swap", "pace", "ratio", "lane", "clear_before", "clear_after"),
    )
    _places: Final = {name: place for place, name in enumerate(names)}

    def __init__(self, rng: np.random.Generator) -> None:
        self._values: NDArray[np.float64] = rng.random(48)

    def __getitem__(self, name: str) -> float:
        return float(self._values[self._places[name]])

    def between(self, name: str, low: float, high: float) -> float:
        """Uniform in [low, high)."""
        return low + (high - low) * self[name]

    def pick(self, name: str, length: int) -> int:
        """A place in a sequence of `length`."""
        return min(int(self[name] * length), length - 1)

    def sign(self, name: str) -> float:
        """-1 or 1."""
        return 1.0 if self[name] < 0.5 else -1.0


def check_choice(field: str, value: str, legal: tuple[str, ...]) -> None:
    """Refuse a word that is not one of `legal`.

    Raises:
        RequestError: names the field, the value and the legal words.
    """
    if value not in legal:
        raise RequestError(f"{field}={value!r} is not known: use one of {', '.join(legal)}.")
