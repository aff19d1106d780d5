"""Pixels that are not given, replaced before encoding, so that nothing of them reaches the encoder."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

HIDDEN_PIXEL = 0.0
"""What a frame without a single given pixel is filled with: mid-grey in [-1, 1]."""


def hide_pixels(video: Tensor, mask: Tensor) -> Tensor:
    """Replace hidden pixels by what the given pixels of their frame suggest.

    A constant would bleed through the encoder into the latents next to it, which are given; a smooth continuation of
    what is known changes them less.

    Args:
        video: [B, 3, F, H, W] in [-1, 1]; hidden pixels may hold anything, even NaN.
        mask: [B, 1, F, H, W] (or broadcastable) in [0, 1], 1 = given, 0 = hidden; between, the two are mixed.
    Returns:
        Shape and dtype of `video`.
    """
    weight = mask.to(video).expand(video.shape[0], 1, *video.shape[2:])
    visible = torch.where(weight > 0, video, torch.zeros_like(video))
    frames, weights = (rearrange(part.float(), "b c f h w -> (b f) c h w") for part in (visible, weight))
    filled = rearrange(_continued(frames, weights), "(b f) c h w -> b c f h w", b=video.shape[0]).to(video)
    return torch.where(weight >= 1, video, torch.lerp(filled, visible, weight))


def _continued(frames: Tensor, weights: Tensor) -> Tensor:
    """Frames [N, C, H, W] whose holes are filled from coarser and coarser means of what is known around them."""
    # The pull-push algorithm: Gortler et al. 1996, The Lumigraph, section 3.4.
    if max(frames.shape[-2:]) == 1:
        return torch.where(weights > 0, frames, torch.full_like(frames, HIDDEN_PIXEL))
    total = _halved(weights)
    means = _halved(frames * weights) / total.clamp(min=1e-12)
    coarse = _continued(means, (4 * total).clamp(max=1.0))
    smooth = F.interpolate(coarse, size=frames.shape[-2:], mode="bilinear", align_corners=False)
    return torch.lerp(smooth, frames, weights)


def _halved(values: Tensor) -> Tensor:
    """Means of 2 x 2; a border of odd length counts its last row or column alone."""
    return F.avg_pool2d(values, 2, ceil_mode=True, count_include_pad=False)
