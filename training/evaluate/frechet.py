"""The Frechet distance between two sets of features, once: what every score of that kind is made of."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vgen.errors import ShapeError, VgenError

Array = NDArray[np.float64]


def frechet_distance(mean: Array, covariance: Array, other_mean: Array, other_covariance: Array) -> float:
    """Between two normal distributions: |m - m'|^2 + tr(C + C' - 2 (C^1/2 C' C^1/2)^1/2).

    Args:
        mean, other_mean: [D].
        covariance, other_covariance: [D, D], symmetric; they need not be invertible.
    Source: Dowson and Landau 1982, eq. 4.
    """
    linalg = _linalg()
    values, vectors = linalg.eigh(covariance)
    root = (vectors * np.sqrt(values.clip(min=0.0))) @ vectors.T
    between = linalg.eigvalsh(root @ other_covariance @ root).clip(min=0.0)
    spread = np.trace(covariance) + np.trace(other_covariance) - 2.0 * np.sqrt(between).sum()
    return float(np.square(mean - other_mean).sum() + spread)


def frechet_of_features(features: Array, other: Array) -> float:
    """Between the normal distributions fitted to two sets of features.

    Args:
        features, other: [N, D] and [M, D], N and M at least 2.
    Raises:
        ShapeError: another rank, different D, or fewer than two rows.
    """
    if (
        features.ndim != 2
        or other.ndim != 2
        or features.shape[1] != other.shape[1]
        or min(map(len, (features, other))) < 2
    ):
        raise ShapeError(f"features {features.shape} and {other.shape}: give [N, D] and [M, D], two rows or more each.")
    first, second = (np.asarray(part, dtype=np.float64) for part in (features, other))
    fitted = [(part.mean(axis=0), np.atleast_2d(np.cov(part, rowvar=False))) for part in (first, second)]
    return frechet_distance(*fitted[0], *fitted[1])


def _linalg() -> Any:
    try:
        from scipy import linalg
    except ImportError:
        raise VgenError("Frechet distances (FVD) need scipy: pip install 'vgen[train]'.") from None
    return linalg
