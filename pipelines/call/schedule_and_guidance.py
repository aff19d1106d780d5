"""From the settings of a call to the schedule that the scheduler steps through."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from vgen.diffusion.conditions import token_sigmas
from vgen.diffusion.guidance.values import every
from vgen.diffusion.schedules import linear_quadratic, linspace_sigmas
from vgen.pipelines.call.conventions import Convention
from vgen.pipelines.call.settings import GenerationSettings
from vgen.request.steps import scheduler_mu, skipped_steps


def largest_scale(settings: GenerationSettings) -> float:
    """The largest guidance scale of a call: what diffusers calls its guidance scale."""
    return max(every(settings.guidance_scale))


def set_schedule(
    scheduler: Any, settings: GenerationSettings, num_tokens: int, convention: Convention, device: torch.device
) -> None:
    """Give the scheduler the sigmas of a call.

    Those given by hand are used as they are. Else the convention's are shifted and stretched as the scheduler's own
    configuration says. With a denoise_strength below 1 only the end of either is left.

    Args:
        scheduler: diffusers' FlowMatchEulerDiscreteScheduler.
        settings: of the call.
        num_tokens: of the video.
        convention: see `Convention`.
        device: of the sigmas.
    """
    config, num_steps = scheduler.config, settings.num_inference_steps
    quadratic = convention.schedule == "linear_quadratic" and not config.use_dynamic_shifting
    if convention.stated_schedule is not None:
        quadratic = convention.stated_schedule == "linear_quadratic"
    if settings.sigmas is not None or num_steps == 1:
        _use_sigmas(scheduler, torch.tensor(settings.sigmas or (1.0,), device=device))
    elif quadratic and not config.use_dynamic_shifting:
        scheduler.set_timesteps(sigmas=linear_quadratic(num_steps).tolist(), device=device)
    else:
        unshifted = linear_quadratic(num_steps) if quadratic else linspace_sigmas(num_steps)
        scheduler.set_timesteps(sigmas=unshifted.tolist(), mu=scheduler_mu(config, num_tokens), device=device)
    skipped = skipped_steps(num_steps, settings.denoise_strength)
    if skipped:
        scheduler.timesteps, scheduler.sigmas = scheduler.timesteps[skipped:], scheduler.sigmas[skipped:]


def _use_sigmas(scheduler: Any, sigmas: torch.Tensor) -> None:
    """Make the scheduler step through these sigmas, [steps], without shifting or stretching them."""
    scheduler.set_timesteps(sigmas=[1.0, 0.5], mu=0.0)  # resets its counters; the two are replaced at once
    scheduler.num_inference_steps = len(sigmas)
    scheduler.sigmas = torch.cat([sigmas, sigmas.new_zeros(1)])
    scheduler.timesteps = sigmas * scheduler.config.num_train_timesteps


@contextmanager
def sampling(scheduler: Any, stochastic: bool | None) -> Iterator[None]:
    """Let the scheduler re-noise at every step, or not, for the time being; None leaves it as it is configured."""
    before = scheduler.config.stochastic_sampling
    if stochastic is not None:
        scheduler.register_to_config(stochastic_sampling=stochastic)
    try:
        yield
    finally:
        if stochastic is not None:
            scheduler.register_to_config(stochastic_sampling=before)


def loop_timesteps(scheduler: Any, strength: torch.Tensor | None) -> torch.Tensor:
    """All timesteps that a loop will ask the transformer for, by step or by token.

    Args:
        scheduler: with the schedule of the call.
        strength: [B, N] of all tokens, see vgen.diffusion.conditions; None: nothing is known.
    Returns:
        [K], float32, distinct and ascending; bit for bit the same numbers as the loop computes.
    """
    sigmas = scheduler.timesteps / scheduler.config.num_train_timesteps
    if strength is not None:
        sigmas = token_sigmas(sigmas, strength.unique()[None])
    return (sigmas * scheduler.config.num_train_timesteps).unique()
