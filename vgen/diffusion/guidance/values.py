"""Numbers that guidances are set with: one for all steps, one per step, or one from each of several sigmas on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from vgen.diffusion.guidance.protocol import StepState
from vgen.errors import RequestError, counted


@dataclass(frozen=True)
class BySigma:
    """Values that hold down to a sigma: a step takes the first whose sigma it has reached, else the last.

    Independent of the number of steps. A step at sigma s takes `values[i]` for the first i with sigmas[i] <= s.

    Attributes:
        sigmas: descending, in [0, 1].
        values: as many.
    """

    sigmas: Sequence[float]
    values: Sequence[Any]

    def __post_init__(self) -> None:
        if len(self.sigmas) != len(self.values) or not self.values:
            raise RequestError(
                f"guidance_sigmas holds {counted(len(self.sigmas), 'sigma')} for {counted(len(self.values), 'value')}: "
                "give one for each."
            )
        if not all(is_number(sigma) for sigma in self.sigmas) or list(self.sigmas) != sorted(self.sigmas, reverse=True):
            raise RequestError(f"guidance_sigmas={list(self.sigmas)} must descend, for instance from 1 to 0.5.")


Values = float | Sequence[float] | BySigma
"""One number, one per step, or one by sigma."""


def every(values: Any) -> list[Any]:
    """All the values that may come up."""
    if isinstance(values, BySigma):
        return list(values.values)
    return list(values) if isinstance(values, (list, tuple)) else [values]


def at_step(values: Any, step: StepState) -> Any:
    """The value of a step."""
    if isinstance(values, BySigma):
        reached = [i for i, sigma in enumerate(values.sigmas) if sigma <= float(step.sigma) + 1e-6]
        return values.values[reached[0] if reached else -1]
    return values[step.index] if isinstance(values, (list, tuple)) else values


def check_range(name: str, values: Values, low: float, high: float, remedy: str) -> None:
    """Refuse what is not a number, or outside [low, high].

    Raises:
        RequestError: names the value and the remedy.
    """
    for value in every(values):
        if not is_number(value) or not low <= value <= high:
            raise RequestError(f"{name}={value!r} {remedy}")
    if not every(values):
        raise RequestError(f"{name} is an empty list: give one number, or one per step.")


def check_length(name: str, values: Any, num_steps: int) -> None:
    """Refuse a list that is not one value per step.

    Raises:
        RequestError: names both numbers.
    """
    if isinstance(values, (list, tuple)) and len(values) != num_steps:
        raise RequestError(
            f"{name} holds {counted(len(values), 'value')} for {counted(num_steps, 'step')}: give one for each step, "
            "or one for all."
        )


def is_number(value: Any) -> bool:
    """A finite real number that is no bool."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(float(value))
