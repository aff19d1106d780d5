"""What makes a clip faster by making another clip: the opt-in ways, their names and numbers. None is ever a default.

Plain facts and checks; nothing heavy is imported. What they do is in vgen.engine.lossy.quantize and
vgen.engine.lossy.step_cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple, get_args

from vgen.errors import RequestError, nearest

Quantization = Literal["int8", "int8-weights", "fp8"]
"""int8: weights and activations of linear layers; int8-weights: weights alone, for memory; fp8: as int8, on GPUs."""

TextQuantization = Literal["int8-weights"]
"""Of the text encoder, which runs once per clip: what it saves is memory."""

QUANTIZATIONS: Final = get_args(Quantization)
TEXT_QUANTIZATIONS: Final = get_args(TextQuantization)

LOSSY_FIELDS: Final = ("quantize", "quantize_text", "step_cache", "guidance_interval")
"""Fields of a request whose clip is not the exact one; listed as "lossy" in the metadata of what they made."""


class _Number(NamedTuple):
    name: str
    default: float
    low: float
    high: float


STEP_CACHES: Final[Mapping[str, _Number]] = {
    "first-block": _Number("threshold", 0.05, 0.0, 10.0),
    "taylorseer": _Number("interval", 2, 1, 100),
    "magcache": _Number("threshold", 0.06, 0.0, 10.0),
}
"""By name: the number that may follow it. Thresholds of 0 and an interval of 1 leave nothing out."""


class StepCache(NamedTuple):
    """A step cache and its number.

    Attributes:
        name: of STEP_CACHES.
        value: first-block: relative change of the first block's output below which the others are left out. magcache:
            error, added up over the steps left out in a row, up to which one more is left out. taylorseer: one of
            this many steps is computed, the others are extrapolated.
    """

    name: str
    value: float

    def __str__(self) -> str:
        return f"{self.name}:{self.value:g}"


def read_step_cache(text: Any) -> StepCache:
    """ "first-block" or "first-block:0.1" -> the cache; without a number its default.

    Raises:
        RequestError: an unknown name, or a number out of its range.
    """
    name, _, number = str(text).partition(":")
    if name not in STEP_CACHES:
        hint = nearest(name, STEP_CACHES)
        raise RequestError(
            f"step_cache={str(text)!r:.80} is not known: use {', '.join(STEP_CACHES)}, perhaps with a number such as "
            f"first-block:0.05{f'; {hint}' if hint else '.'}"
        )
    known = STEP_CACHES[name]
    try:
        value = float(number) if number else known.default
    except ValueError:
        value = float("nan")
    if not known.low <= value <= known.high or (name == "taylorseer" and value != int(value)):
        kind = "a whole number" if name == "taylorseer" else "a number"
        raise RequestError(
            f"step_cache={str(text)!r:.80}: the {known.name} must be {kind} from {known.low:g} to {known.high:g}; use "
            f"for instance {name}:{known.default:g}."
        )
    return StepCache(name, value)


def read_interval(value: Any) -> tuple[float, float]:
    """ "0.5,1" or two numbers -> sigmas from low to high.

    Raises:
        RequestError: they are not two numbers of 0 to 1, ascending.
    """
    entries = value[:80].split(",") if isinstance(value, str) else value
    try:
        low, high = (float(entry) for entry in entries)
    except (TypeError, ValueError):
        low = high = float("nan")
    if not 0 <= low < high <= 1:
        raise RequestError(
            f"guidance_interval={value!r:.80} must be two sigmas of 0 to 1 that ascend, LOW,HIGH (1 is pure noise); "
            "use for instance 0.3,1."
        )
    return low, high


def check_kind(field: str, value: Any, known: tuple[str, ...]) -> None:
    """Refuse a kind of quantisation that is none of `known`.

    Raises:
        RequestError: names them.
    """
    if value not in known:
        raise RequestError(f"{field}={value!r:.80} is not known: use {', '.join(known)}; left out is exact.")


def spelled(value: Any) -> str:
    """The value of a lossy field as the command takes it."""
    return ",".join(f"{part:g}" for part in value) if isinstance(value, tuple) else str(value)
