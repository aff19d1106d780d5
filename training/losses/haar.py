"""A three-dimensional orthonormal Haar transform and the L1 distance between two clips in it."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

_AXES = (2, 3, 4)


def haar_level(clip: Tensor) -> list[Tensor]:
    """One level of the transform.

    Each axis is split into (a + b) / sqrt 2 and (a - b) / sqrt 2 of neighbouring pairs. An axis of odd length is
    extended by repeating its first entry (the causal first frame); an axis of length 1 is left alone.

    Args:
        clip: [B, C, F, H, W].
    Returns:
        The bands, the low one first.
    """
    bands = [clip]
    for axis in _AXES:
        if clip.shape[axis] == 1:
            continue
        split = []
        for band in bands:
            band = _even(band, axis)
            first, second = band.unfold(axis, 2, 2).unbind(-1)
            split.append(((first + second) / math.sqrt(2), (first - second) / math.sqrt(2)))
        bands = [low for low, _ in split] + [high for _, high in split]
    return bands


def inverse_haar_level(bands: list[Tensor], size: tuple[int, int, int]) -> Tensor:
    """Undo `haar_level`.

    Args:
        bands: what it returned.
        size: frames, rows and columns of the original.
    Returns:
        [B, C, F, H, W].
    """
    for axis in reversed(_AXES):
        length = size[axis - 2]
        if length == 1:
            continue
        half = len(bands) // 2
        merged = []
        for low, high in zip(bands[:half], bands[half:], strict=True):
            pair = torch.stack([(low + high) / math.sqrt(2), (low - high) / math.sqrt(2)], dim=axis + 1)
            merged.append(pair.flatten(axis, axis + 1).narrow(axis, length % 2, length))
        bands = merged
    return bands[0]


def haar_distance(difference: Tensor, weights: Tensor | None = None, levels: int = 3) -> Tensor:
    """Weighted mean absolute Haar coefficient of a difference of clips.

    Args:
        difference: [B, C, F, H, W]; the transform is linear, so this is as good as both clips.
        weights: [B, 1, F, H, W] weight of each pixel; a coefficient gets the mean weight of its pixels.
        levels: how often the low band is split again.
    Returns:
        Scalar: the mean over the levels' bands and the last low band, by number of coefficients.
    """
    total = difference.new_zeros(())
    count = difference.new_zeros(())
    low = difference
    weight = torch.ones_like(difference[:, :1]) if weights is None else weights
    for level in range(levels):
        low, *high = haar_level(low)
        if not high:
            break
        weight = _pool(weight)
        kept = [*high, low] if level == levels - 1 else high
        for band in kept:
            total = total + (band.abs() * weight).sum()
            count = count + weight.sum() * band.shape[1]
    return total / count.clamp_min(torch.finfo(count.dtype).tiny)


def _even(clip: Tensor, axis: int) -> Tensor:
    if clip.shape[axis] % 2 == 0:
        return clip
    return torch.cat([clip.narrow(axis, 0, 1), clip], dim=axis)


def _pool(weight: Tensor) -> Tensor:
    for axis in _AXES:
        if weight.shape[axis] > 1:
            weight = _even(weight, axis)
    kernel = tuple(2 if size > 1 else 1 for size in weight.shape[2:])
    return functional.avg_pool3d(weight, kernel)
