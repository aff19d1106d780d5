"""What makes a clip faster by making another clip: the opt-in ways, their names and numbers. None is ever a default.

Plain facts and checks; nothing heavy is imported. What they do lies in vgen.engine.lossy.quantize and
vgen.engine.lossy.step_cache.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, NamedTuple

from pydantic import BaseModel, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from vgen.errors import RequestError

QUANTIZATIONS: Final = ("int8", "int8-weights", "fp8")
"""int8: weights and activations of linear layers; int8-weights: weights alone, for memory; fp8: as int8, on GPUs."""

TEXT_QUANTIZATIONS: Final = ("int8-weights",)
"""Of the text encoder, which runs once a clip: what it saves is memory."""

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
            error, added up over the steps left out in a row, up to which one more is left out. taylorseer: of so many
            steps one is computed, the others are extrapolated.
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
        near = difflib.get_close_matches(name[:80], STEP_CACHES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise RequestError(
            f"step_cache={str(text)!r:.80} is not known: use {', '.join(STEP_CACHES)}, perhaps with a number such as "
            f"first-block:0.05{hint}"
        )
    told = STEP_CACHES[name]
    try:
        value = float(number) if number else told.default
    except ValueError:
        value = float("nan")
    if not told.low <= value <= told.high or (name == "taylorseer" and value != int(value)):
        kind = "a whole number" if name == "taylorseer" else "a number"
        raise RequestError(
            f"step_cache={str(text)!r:.80}: the {told.name} must be {kind} from {told.low:g} to {told.high:g}; use for "
            f"instance {name}:{told.default:g}."
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


def _checked(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        try:
            return None if value is None else read(value)
        except RequestError as error:
            raise PydanticCustomError("vgen", "{message}", {"message": str(error)}) from None

    return check


def read_quantize(value: Any) -> str:
    """A name of QUANTIZATIONS.

    Raises:
        RequestError: it is none.
    """
    if value not in QUANTIZATIONS:
        raise RequestError(f"quantize={value!r:.80} is not known: use {', '.join(QUANTIZATIONS)}; left out is exact.")
    return value


def read_quantize_text(value: Any) -> str:
    """A name of TEXT_QUANTIZATIONS.

    Raises:
        RequestError: it is none.
    """
    if value not in TEXT_QUANTIZATIONS:
        known = ", ".join(TEXT_QUANTIZATIONS)
        raise RequestError(f"quantize_text={value!r:.80} is not known: use {known}; left out is exact.")
    return value


class LossyFields(BaseModel):
    """The part of a request that trades exactness for speed or memory; everything is off where it is left out."""

    quantize: Annotated[str | None, BeforeValidator(_checked(read_quantize))] = Field(
        default=None, description="Lossy: linear layers in 8 bits, int8, int8-weights (memory only) or fp8 (GPU)."
    )
    quantize_text: Annotated[str | None, BeforeValidator(_checked(read_quantize_text))] = Field(
        default=None, description="Lossy: the text encoder's linear layers in 8 bits, int8-weights; for memory."
    )
    step_cache: Annotated[str | None, BeforeValidator(_checked(lambda value: str(read_step_cache(value))))] = Field(
        default=None,
        description="Lossy: steps are left out; first-block, taylorseer or magcache, each NAME or NAME:NUMBER.",
    )
    guidance_interval: Annotated[tuple[float, float] | None, BeforeValidator(_checked(read_interval))] = Field(
        default=None, description="Lossy: guidance only where the noise level is from LOW to HIGH, 0 to 1."
    )

    @property
    def lossy(self) -> tuple[str, ...]:
        """What was asked for that changes the clip beyond rounding, "field=value"; empty is exact."""
        given = {name: getattr(self, name) for name in LOSSY_FIELDS}
        return tuple(f"{name}={_spelled(value)}" for name, value in given.items() if value is not None)


def _spelled(value: Any) -> str:
    return ",".join(f"{part:g}" for part in value) if isinstance(value, tuple) else str(value)
