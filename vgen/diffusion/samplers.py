"""Stepping: diffusers' schedulers do it; what is added here is that every token may stand at a sigma of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vgen.diffusion.conditions import HARD_EPSILON, token_sigmas


def advance(
    scheduler: Any,
    velocity: Tensor,
    timestep: Tensor,
    tokens: Tensor,
    strength: Tensor | None = None,
    generator: torch.Generator | list[torch.Generator] | None = None,
) -> Tensor:
    """One step of the scheduler.

    A token of strength s waits until the schedule has come down to 1 - s and then moves with the rest; one of strength
    1 never moves.

    Args:
        scheduler: diffusers' `FlowMatchEulerDiscreteScheduler`, with its timesteps set.
        velocity: [B, N, C], noise - clean.
        timestep: scalar, one of the scheduler's.
        tokens: [B, N, C].
        strength: [B, N], or None if nothing is known.
        generator: noise of stochastic schedules.
    Returns:
        [B, N, C].
    Source: LTX-Video 2024, section 4.1 (a timestep per token).
    """
    if strength is None:
        return scheduler.step(velocity, timestep, tokens, generator=generator, return_dict=False)[0]
    sigma = timestep / scheduler.config.num_train_timesteps
    per_token = token_sigmas(sigma, strength) * scheduler.config.num_train_timesteps
    # With per-token timesteps diffusers' deterministic step subtracts what it adds without them; its stochastic one
    # reads the velocity as it is.
    signed = velocity if scheduler.config.stochastic_sampling else -velocity
    moved = scheduler.step(
        signed, timestep, tokens, generator=generator, per_token_timesteps=per_token, return_dict=False
    )[0]
    moves = sigma - HARD_EPSILON < 1 - strength
    return torch.where(moves[..., None], moved, tokens)


def renoise_hard(tokens: Tensor, start: Tensor, noise: Tensor, scale: float, sigma: Tensor, strength: Tensor) -> Tensor:
    """Put a little noise on hard-known tokens, scale * sigma^2 of it, so that a single frame does not freeze motion.

    Args:
        tokens: [B, N, C], as they stand.
        start: [B, N, C], as they were at the start (clean where hard-known).
        noise: [B, N, C], fresh.
        scale: share of noise at sigma 1.
        sigma: scalar, of the step.
        strength: [B, N].
    Returns:
        [B, N, C].
    Source: LTX-Video's public inference code (image conditioning noise).
    """
    hard = strength > 1 - HARD_EPSILON
    return torch.where(hard[..., None], start + scale * noise * sigma**2, tokens)
