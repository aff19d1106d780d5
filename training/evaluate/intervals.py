"""Intervals for scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from vgen.errors import RequestError

_RESAMPLES = 2000


class Interval(NamedTuple):
    """A mean and the interval that it lies in."""

    mean: float
    low: float
    high: float


def as_score(interval: Interval, count: int) -> dict[str, float]:
    """An interval over `count` samples as the JSON file holds it."""
    return {**interval._asdict(), "count": count}


def share(passed: Sequence[bool], repeats: int = 1) -> dict[str, float]:
    """`share_interval` as the JSON file holds it."""
    return as_score(share_interval(passed, repeats), len(passed))


def decibels(errors: Sequence[float], weights: Sequence[float] | None = None) -> dict[str, float]:
    """`psnr_interval` as the JSON file holds it."""
    return as_score(psnr_interval(errors, weights), len(errors))


def with_intervals(scores: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Means by name, and under "intervals" [low, high] by the same names."""
    means: dict[str, Any] = {name: score["mean"] for name, score in scores.items()}
    return {**means, "intervals": {name: [score["low"], score["high"]] for name, score in scores.items()}}


def bootstrap_interval(
    values: Sequence[float] | np.ndarray, seed: int = 0, level: float = 0.95, resamples: int = _RESAMPLES
) -> Interval:
    """The mean and its percentile bootstrap interval.

    Args:
        values: one number (or truth value) per sample, none of them NaN.
        seed: of the resampling.
        level: coverage, between 0 and 1.
        resamples: how many times the values are drawn again.
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


def wilson_interval(successes: float, count: float, level: float = 0.95) -> Interval:
    """A share and Wilson's score interval, which holds near 0 and 1, too, where every sample agrees.

    Args:
        successes: how many passed.
        count: of how many; need not be whole, see `share_interval`.
        level: coverage, between 0 and 1.
    Raises:
        RequestError: no samples, or a level outside (0, 1).
    Source: Wilson 1927.
    """
    if not 0 <= successes <= count or count <= 0:
        raise RequestError(f"successes={successes} of count={count}: a share is of at least one sample.")
    if not 0.0 < level < 1.0:
        raise RequestError(f"level={level} must lie between 0 and 1; use 0.95.")
    z = NormalDist().inv_cdf(0.5 + level / 2)
    share = successes / count
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half))


def share_interval(passed: Sequence[bool], repeats: int = 1, level: float = 0.95) -> Interval:
    """The share of samples that pass, and its interval.

    Repeats of one prompt resemble each other, so they say less than as many prompts would. Wilson's interval is
    taken at the number of independent samples that has the variance found between prompts (Kish's design effect).

    Args:
        passed: one truth value per sample, repeat after repeat: sample i is of prompt i % (len / repeats).
        repeats: samples of each prompt.
        level: coverage, between 0 and 1.
    Raises:
        RequestError: no values, or not a whole number of prompts.
    """
    numbers = np.asarray(passed, dtype=np.float64)
    if not len(numbers) or len(numbers) % repeats:
        raise RequestError(f"passed has {len(numbers)} entries, which do not make prompts of {repeats} repeats each.")
    count, share = len(numbers), float(numbers.mean())
    prompts = count // repeats
    effect = float(repeats)  # where all agree it cannot be estimated
    if prompts > 1 and 0 < share < 1:
        between = float(numbers.reshape(repeats, prompts).mean(0).var(ddof=1))
        effect = min(max(repeats * between / (share * (1 - share)), 1.0), float(repeats))
    independent = count / effect
    return wilson_interval(share * independent, independent, level)


def psnr_interval(errors: Sequence[float], weights: Sequence[float] | None = None, level: float = 0.95) -> Interval:
    """PSNR in dB over the pixels of all clips together, and its bootstrap interval over clips.

    Args:
        errors: mean squared error of each clip, as 8-bit images.
        weights: pixels that count in each clip; None: as many in all.
        level: coverage, between 0 and 1.
    Raises:
        RequestError: no clips, or no pixels that count.
    """
    means = np.asarray(errors, np.float64)
    counts = np.ones_like(means) if weights is None else np.asarray(weights, np.float64)
    if not len(means) or counts.sum() <= 0:
        raise RequestError(f"errors has {len(means)} entries: a PSNR needs at least one clip with pixels that count.")
    rng = np.random.Generator(np.random.Philox(key=np.array([0, len(means)], np.uint64)))
    totals = []
    for _ in range(_RESAMPLES):
        drawn = rng.integers(0, len(means), len(means))
        if counts[drawn].sum() > 0:
            totals.append(float((means[drawn] * counts[drawn]).sum() / counts[drawn].sum()))
    worst, best = np.quantile(totals, [(1.0 + level) / 2.0, (1.0 - level) / 2.0])
    mean = float((means * counts).sum() / counts.sum())
    return Interval(_decibels(mean), _decibels(float(worst)), _decibels(float(best)))


def _decibels(error: float) -> float:
    return 10 * math.log10(255.0**2 / max(error, 1e-10))
