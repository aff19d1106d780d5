"""Pixel losses and measures: weighted L1, PSNR (whole and on a mask), SSIM."""

from __future__ import annotations

import math
from statistics import fmean

import torch
from torch import Tensor
from torch.nn import functional

from vgen.training.precision import in_float32


def foreground_weights(masks: Tensor, weight: float, margin: int = 1) -> Tensor:
    """Pixel weights: `weight` on the objects and `margin` pixels around them, 1 elsewhere.

    Args:
        masks: bool [B, F, H, W].
        weight: at least 1.
        margin: pixels the masks are grown by, so that outlines count.
    Returns:
        float32 [B, 1, F, H, W].
    """
    grown = functional.max_pool2d(masks.float(), 2 * margin + 1, stride=1, padding=margin)
    return (1.0 + (weight - 1.0) * grown).unsqueeze(1)


def weighted_l1(difference: Tensor, weights: Tensor) -> Tensor:
    """sum(w |d|) / sum(w) over all pixels and channels.

    Args:
        difference: [B, C, F, H, W].
        weights: [B, 1, F, H, W].
    """
    return (difference.abs() * weights).sum() / (weights.sum() * difference.shape[1])


def weighted_square(difference: Tensor, weights: Tensor) -> Tensor:
    """sum(w d^2) / sum(w) over all pixels and channels, as `weighted_l1`."""
    return (difference.square() * weights).sum() / (weights.sum() * difference.shape[1])


def psnr(first: Tensor, second: Tensor, masks: Tensor | None = None) -> float:
    """Peak signal-to-noise ratio in dB over all given pixels together, as 8-bit images.

    Args:
        first: uint8 [B, F, H, W, 3].
        second: the same shape.
        masks: bool [B, F, H, W], the pixels that count; None counts all.
    """
    error = (first.double() - second.double()).square()
    mean = float(error.mean() if masks is None else error[masks].mean())
    return 10 * math.log10(255.0**2 / max(mean, 1e-10))


def difference_psnr(first: Tensor, second: Tensor) -> float:
    """PSNR in dB of the differences from frame to frame: what flicker costs. Clips as for `psnr`."""
    return _difference_psnr(first.double().diff(dim=1), second.double().diff(dim=1))


def seam_psnr(first: Tensor, second: Tensor, stride: int) -> float:
    """The same of those differences alone that cross from one latent's frames to the next one's.

    Args:
        first, second: uint8 [B, F, H, W, 3], F > 1.
        stride: frames of a latent; frame 0 has one of its own, so the seams lie after frames 0, stride, 2 stride ...
    """
    return _difference_psnr(*(clip.double().diff(dim=1)[:, ::stride] for clip in (first, second)))


def _difference_psnr(first: Tensor, second: Tensor) -> float:
    error = float((first - second).square().mean()) if first.numel() else 0.0
    return 10 * math.log10(255.0**2 / max(error, 1e-10))


def ssim(first: Tensor, second: Tensor) -> float:
    """Structural similarity, mean over frames and channels (Wang et al. 2004: 11-pixel Gaussian, sigma 1.5).

    One clip after the other, since a dozen float32 copies of all would be more than training holds.

    Args:
        first: uint8 [B, F, H, W, 3].
        second: the same shape.
    """
    return fmean(_ssim_of_clip(*clips) for clips in zip(first, second, strict=True))


def _ssim_of_clip(first: Tensor, second: Tensor) -> float:
    images = (clip.permute(0, 3, 1, 2).flatten(0, 1).unsqueeze(1).float() for clip in (first, second))
    return float(_similarity(*images))


def dissimilarity(first: Tensor, second: Tensor) -> Tensor:
    """1 - SSIM as a loss: what is left of flat surfaces that should be flat weighs in it.

    Args:
        first: [B, C, F, H, W] in [-1, 1], at least 11 pixels high and wide.
        second: the same shape.
    """
    with in_float32(first.device):  # variances are small differences of large numbers
        images = (clip.float().transpose(1, 2).flatten(0, 2).unsqueeze(1).add(1).mul(127.5) for clip in (first, second))
        return 1 - _similarity(*images)


def _similarity(first: Tensor, second: Tensor) -> Tensor:
    """Mean SSIM of images [N, 1, H, W] from 0 to 255."""
    offsets = torch.arange(11, dtype=torch.float32, device=first.device) - 5
    line = torch.exp(-offsets.square() / (2 * 1.5**2))
    line = line / line.sum()
    kernel = torch.outer(line, line)[None, None]

    def blur(image: Tensor) -> Tensor:
        return functional.conv2d(image, kernel)

    mean_a, mean_b = blur(first), blur(second)
    var_a = blur(first * first) - mean_a.square()
    var_b = blur(second * second) - mean_b.square()
    both = blur(first * second) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    value = ((2 * mean_a * mean_b + c1) * (2 * both + c2)) / (
        (mean_a.square() + mean_b.square() + c1) * (var_a + var_b + c2)
    )
    return value.mean()
