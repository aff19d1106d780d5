"""From the settings of a call to its strategies: the guidance, and the schedule that the scheduler steps through."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from vgen.diffusion.conditions import token_sigmas
from vgen.diffusion.guidance import BySigma, ClassifierFreeGuidance, ComposedGuidance, Guidance, SpatioTemporalGuidance
from vgen.diffusion.guidance.values import every
from vgen.diffusion.schedules import linear_quadratic, linspace_sigmas
from vgen.errors import RequestError
from vgen.pipelines.call.conventions import Convention
from vgen.pipelines.call.settings import GenerationSettings
from vgen.request.steps import resolution_shift_mu, skipped_steps

_JUST_ABOVE = 1e-5
"""So that a step at the upper end itself still has guidance."""


def guidance_of(settings: GenerationSettings) -> Guidance:
    """The guidance of a call: the caller's strategy, or what the numbers say.

    Raises:
        RequestError: settings that contradict each other, or lists that do not fit.
    """
    if settings.guidance_interval is not None:
        return _within(settings, *settings.guidance_interval)
    if settings.guidance is not None:
        return settings.guidance

    def values(name: str) -> Any:
        value = getattr(settings, name)
        by_sigma = settings.guidance_sigmas is not None and isinstance(value, (list, tuple))
        if name == "stg_blocks" and by_sigma:
            by_sigma = any(isinstance(entry, (list, tuple)) for entry in value)
        return BySigma(settings.guidance_sigmas or (), value) if by_sigma else value

    scale, rescale = values("guidance_scale"), values("guidance_rescale")
    if not isinstance(settings.stg_scale, (list, tuple)) and settings.stg_scale == 0:
        return ClassifierFreeGuidance(scale, rescale, settings.cfg_star)
    assert settings.stg_blocks is not None  # as settings are filled in
    spatiotemporal = SpatioTemporalGuidance(values("stg_blocks"), values("stg_scale"), settings.stg_mode)
    return ComposedGuidance((ClassifierFreeGuidance(scale, star=settings.cfg_star), spatiotemporal), rescale)


def _within(settings: GenerationSettings, low: float, high: float) -> Guidance:
    """Classifier-free guidance between two sigmas and none elsewhere.

    Source: Kynkäänniemi et al. 2024, eq. 5.
    """
    for name, off in (("guidance", None), ("guidance_sigmas", None), ("stg_scale", 0.0)):
        if getattr(settings, name) != off:
            raise RequestError(f"guidance_interval={low:g},{high:g} and {name} contradict each other: leave one out.")
    if isinstance(settings.guidance_scale, (list, tuple)) or isinstance(settings.guidance_rescale, (list, tuple)):
        raise RequestError(
            f"guidance_interval={low:g},{high:g} needs one guidance_scale and one guidance_rescale, not a list."
        )
    above, within, below = 1.0, settings.guidance_scale, 1.0
    scale = BySigma((high + _JUST_ABOVE, low, 0.0), (above, within, below)) if low > 0 else BySigma(
        (high + _JUST_ABOVE, 0.0), (above, within)
    )  # fmt: skip
    return ClassifierFreeGuidance(scale, settings.guidance_rescale, settings.cfg_star)


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
        mu = resolution_shift_mu(
            num_tokens,
            base_tokens=config.base_image_seq_len,
            max_tokens=config.max_image_seq_len,
            base_shift=config.base_shift,
            max_shift=config.max_shift,
        )
        unshifted = linear_quadratic(num_steps) if quadratic else linspace_sigmas(num_steps)
        scheduler.set_timesteps(sigmas=unshifted.tolist(), mu=mu, device=device)
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
