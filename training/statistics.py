"""Intervals for scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vgen.errors import RequestError


class Interval(NamedTuple):
    """A mean and the interval that it lies in."""

    mean: float
    low: float
    high: float


def bootstrap_interval(
    values: Sequence[float] | np.ndarray, seed: int = 0, level: float = 0.95, resamples: int = 2000
) -> Interval:
    """The mean and its percentile bootstrap interval.

    Args:
        values: one number (or truth value) a sample; NaN is not a number here either.
        seed: of the resampling.
        level: coverage, between 0 and 1.
        resamples: how many times the values are drawn anew.
    Raises:
        RequestError: no values, a NaN, or a level outside (0, 1).
    """
    numbers = np.asarray(values, dtype=np.float64).ravel()
    if not len(numbers) or np.isnan(numbers).any():
        raise RequestError(f"values has {len(numbers)} entries: at least one is needed, and none may be NaN.")
    if not 0.0 < level < 1.0:
        raise RequestError(f"level={level} must lie between 0 and 1; use 0.95.")
    rng = np.random.Generator(np.random.Philox(key=np.array([seed, len(numbers)], np.uint64)))
    # One row at a time keeps the memory at the size of the values.
    means = np.array([numbers[rng.integers(0, len(numbers), len(numbers))].mean() for _ in range(resamples)])
    low, high = np.quantile(means, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return Interval(float(numbers.mean()), float(low), float(high))
