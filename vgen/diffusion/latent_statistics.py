"""Statistics of latents between two passes: matched to those of the first, and compressed before decoding."""

from __future__ import annotations

import torch
from torch import Tensor

from vgen.errors import RequestError, ShapeError


def match_statistics(latents: Tensor, reference: Tensor, factor: float = 1.0) -> Tensor:
    """Give each channel of each sample the mean and deviation that it has in `reference` (AdaIN).

    matched = (latents - mean) / std * std_reference + mean_reference; result = lerp(latents, matched, factor).
    The result is the same whether both are normalised by the VAE's statistics or not. A channel without a deviation
    (a constant one, or a single value) is only moved.

    Args:
        latents: [B, C, f, h, w].
        reference: [B, C, f', h', w'], of any size.
        factor: 0 changes nothing, 1 matches in full; other numbers go on along the line.
    Returns:
        Shape and dtype of `latents`; computed in float32.
    Raises:
        ShapeError: other samples or channels in `reference`.
    Source: Huang and Belongie 2017, eq. 8; here over time too.
    """
    if latents.shape[:2] != reference.shape[:2]:
        raise ShapeError(
            f"latents {tuple(latents.shape)} and reference {tuple(reference.shape)} must have the same samples and "
            "channels."
        )
    std, mean = _std_mean(latents)
    reference_std, reference_mean = _std_mean(reference.to(latents.device))
    ratio = reference_std / std
    ratio = torch.where(torch.isfinite(ratio), ratio, torch.ones_like(ratio))
    values = latents.float()
    return torch.lerp(values, (values - mean) * ratio + reference_mean, float(factor)).to(latents.dtype)


def _std_mean(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Deviation and mean of each channel, [B, C, 1, 1, 1] each; a single value has deviation 0."""
    values = latents.float()
    count = values[0, 0].numel()
    return torch.std_mean(values, dim=(2, 3, 4), keepdim=True, correction=1 if count > 1 else 0)


def tone_map(latents: Tensor, compression: float) -> Tensor:
    """Compress large values: latents * (1 - 0.6 c sigmoid(3 c (|latents| - 1))).

    Args:
        latents: any shape, normalised.
        compression: c in [0, 1]; 0 changes nothing.
    Returns:
        Shape and dtype of `latents`.
    Raises:
        RequestError: `compression` is outside [0, 1].
    Source: LTX-Video's public inference code (13B 0.9.8 distilled, second pass).
    """
    if not 0 <= compression <= 1:
        raise RequestError(f"tone_map_compression_ratio={compression!r} must be in [0, 1]; 0 is off.")
    if compression == 0:
        return latents
    pressure = torch.sigmoid(3.0 * compression * (latents.abs() - 1.0))
    return latents * (1.0 - 0.6 * compression * pressure)
