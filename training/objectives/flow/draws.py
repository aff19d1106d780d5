"""What a step of flow matching draws: sigmas, at the density of the model's own scheduler."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vgen.diffusion.schedules import sample_training_sigmas
from vgen.request.steps import resolution_shift_mu, scheduler_mu
from vgen.training.randomness import Keys


def token_shape(latents: Tensor, patch_size: int) -> tuple[int, int, int]:
    """(B, N, C) of the tokens of latents [B, C, f, h, w]."""
    per_token = patch_size**2
    return latents.shape[0], latents.shape[2:].numel() // per_token, latents.shape[1] * per_token


def mu_of(scheduler: Any, num_tokens: int) -> float:
    """mu of a pipeline's scheduler; LTX-Video's line where it does not shift by token count."""
    config = scheduler.config
    return scheduler_mu(config, num_tokens) if config.use_dynamic_shifting else resolution_shift_mu(num_tokens)


def draw_sigmas(rows: int, tokens: int, mu: float, uniform_share: float, keys: Keys) -> Tensor:
    """[B] of clips of that many tokens, on the CPU."""

    def draw(count: int, drawn: torch.Generator) -> Tensor:
        return sample_training_sigmas(count, tokens, drawn, uniform_share=uniform_share, mu=mu)

    return keys.rows("sigma", rows, draw)
