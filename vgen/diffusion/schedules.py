"""Sigma schedules for sampling, and the density of sigmas for training.

Sigmas descend from 1 (noise) towards 0 (data). The longer the token sequence, the more noise is needed to hide its
content, so both sampling and training shift towards noise by e^mu with mu linear in the number of tokens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vgen.errors import RequestError
from vgen.request.steps import resolution_shift_mu

_Z_LOW = -2.575829  # the standard normal's 0.5 percentile
_Z_HIGH = 3.090232  # ... and its 99.9 percentile
_NARROWEST = 16 * 2.0**-24  # 16 neighbouring float32 below 1


def linspace_sigmas(num_steps: int) -> Tensor:
    """Evenly spaced sigmas 1, ..., 1 / num_steps, without the final 0: [num_steps], float32."""
    _check_steps(num_steps)
    return torch.linspace(1.0, 1.0 / num_steps, num_steps, dtype=torch.float64).float()


def linear_quadratic(num_steps: int, threshold: float = 0.025, linear_steps: int | None = None) -> Tensor:
    """Small even steps near noise, then quadratically growing ones: what LTX-Video 0.9.5 and later sample with.

    The first `linear_steps` steps together remove `threshold` of the noise; a parabola that continues the line with
    the same slope removes the rest.

    Args:
        num_steps: number of steps.
        threshold: noise removed by the linear part, in (0, 1).
        linear_steps: length of the linear part, default half.
    Returns:
        [num_steps], float32, from 1 downwards, without the final 0.
    Source: Meta, Movie Gen 2024, section 3.4.2.
    """
    _check_steps(num_steps)
    if num_steps < 2:
        return torch.ones(1)
    linear = num_steps // 2 if linear_steps is None else linear_steps
    if not 0 < linear < num_steps:
        raise RequestError(f"linear_steps={linear} does not fit num_steps={num_steps}: use 1 to {num_steps - 1}.")
    slope = threshold / linear
    rest = num_steps - linear
    curve = (1 - threshold - slope * rest) / rest**2
    steps = torch.arange(num_steps, dtype=torch.float64)
    beyond = (steps - linear).clamp(min=0)
    return (1 - (slope * steps + curve * beyond**2)).float()


def sample_training_sigmas(
    batch: int,
    num_tokens: int,
    generator: torch.Generator | None = None,
    uniform_share: float = 0.1,
    *,
    mu: float | None = None,
) -> Tensor:
    """Draw one sigma per sample from the training density.

    sigmoid(N(mu, 1)) with mu from the token count, its 0.5 to 99.9 percentiles stretched onto [0, 1] (what falls
    below is folded back, what falls above becomes 1), and a uniform share without which the density would collapse
    towards 1 for long sequences.

    Args:
        batch: number of samples.
        num_tokens: tokens of the video.
        generator: source of all randomness; the draws are made on its device.
        uniform_share: share of samples that is uniform in [0, 1].
        mu: the shift, where it is not that of `resolution_shift_mu(num_tokens)`.
    Returns:
        [batch], float32, on the generator's device (CPU without one).
    Raises:
        RequestError: the shift is so large that the density has no width in float32.
    Source: Esser et al. 2024, section 3.1; the stretch is that of Lightricks' trainers.
    """
    device = generator.device if generator is not None else torch.device("cpu")
    mu = resolution_shift_mu(num_tokens) if mu is None else mu
    low, high = (1 / (1 + math.exp(-(mu + z))) for z in (_Z_LOW, _Z_HIGH))
    if high - low < _NARROWEST:
        raise RequestError(
            f"num_tokens={num_tokens} is shifted by e^{mu:.1f}, which makes all noise levels 1: nothing is learned "
            "there. Train on smaller or shorter clips, or set another shift."
        )
    normal = torch.randn(batch, generator=generator, device=device)
    stretched = ((torch.sigmoid(normal + mu) - low) / (high - low)).abs().clamp(max=1)
    uniform = torch.rand(batch, generator=generator, device=device)
    is_uniform = torch.rand(batch, generator=generator, device=device) < uniform_share
    return torch.where(is_uniform, uniform, stretched)


def _check_steps(num_steps: int) -> None:
    if num_steps < 1:
        raise RequestError(f"num_inference_steps={num_steps} is not a number of steps: use 1 or more.")
