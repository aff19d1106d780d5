"""What a pipeline refuses before anything is computed: shapes and counts; numbers are checked as they are declared."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vgen.diffusion.tokens import token_grid, token_strides
from vgen.errors import RequestError, ShapeError, counted
from vgen.pipelines.call.settings import GenerationSettings
from vgen.request.steps import check_shift
from vgen.types import LatentShape


def check_call(pipe: Any, settings: GenerationSettings) -> LatentShape:
    """Check everything about a call that does not need a component to be run.

    Args:
        pipe: a pipeline.
        settings: of the call.
    Returns:
        The latent size of the clip.
    Raises:
        RequestError: names the field, the value, the rule and what would fit.
    """
    _check_text(settings)
    _check_per_prompt(settings)
    strides = token_strides(pipe.vae.strides, pipe.patch_size)
    settings.shape.check(strides)
    shape, batch, generators = settings.shape.latent(pipe.vae.strides), settings.batch_size, settings.generator
    if isinstance(generators, list) and len(generators) != batch:
        raise RequestError(f"generator holds {counted(len(generators), 'generator')} for {counted(batch, 'clip')}.")
    if settings.latents is not None:
        channels, patch = pipe.vae.config.latent_channels, pipe.patch_size
        legal = (batch, channels, *shape), (batch, token_grid(shape, patch).num_tokens, channels * patch**2)
        if tuple(settings.latents.shape) not in legal:
            raise ShapeError(f"latents has shape {tuple(settings.latents.shape)}: it must be {legal[0]} or {legal[1]}.")
    callback_tensors = pipe._callback_tensor_inputs
    unknown = [name for name in settings.callback_on_step_end_tensor_inputs if name not in callback_tensors]
    if unknown:
        raise RequestError(f"callback_on_step_end_tensor_inputs={unknown} must be among {', '.join(callback_tensors)}.")
    check_shift(pipe.scheduler.config, settings.most_steps, settings.shape, strides, settings.sigmas)
    return shape


def check_start(settings: GenerationSettings, starts_from_clip: bool) -> None:
    """Refuse a call that is to run the end of the schedule from noise alone."""
    if not starts_from_clip and settings.denoise_strength < 1:
        raise RequestError(
            f"denoise_strength={settings.denoise_strength:g} needs a clip to start from: use VideoToVideoPipeline."
        )


def _check_text(settings: GenerationSettings) -> None:
    prompt, embeds = settings.prompt, settings.prompt_embeds
    if (prompt is None) == (embeds is None):
        raise RequestError('Give either prompt or prompt_embeds, and not both; prompt="" is allowed.')
    for kind in ("prompt", "negative_prompt"):
        _check_embeds(
            kind, getattr(settings, f"{kind}_embeds"), getattr(settings, f"{kind}_attention_mask"), settings.num_prompts
        )
    negative_embeds = settings.negative_prompt_embeds
    if embeds is not None and negative_embeds is not None and embeds.shape != negative_embeds.shape:
        raise ShapeError(
            f"prompt_embeds {tuple(embeds.shape)} and negative_prompt_embeds {tuple(negative_embeds.shape)} differ: "
            "they must have the same shape."
        )


def _check_embeds(kind: str, embeds: Tensor | None, mask: Tensor | None, num_prompts: int) -> None:
    if embeds is None:
        return
    if embeds.ndim != 3 or embeds.shape[0] != num_prompts:
        raise ShapeError(f"{kind}_embeds has shape {tuple(embeds.shape)}: it must be [{num_prompts}, L, D].")
    if mask is None or mask.shape != embeds.shape[:2]:
        shown = None if mask is None else tuple(mask.shape)
        raise ShapeError(
            f"{kind}_attention_mask has shape {shown}: with {kind}_embeds it must be {tuple(embeds.shape[:2])}."
        )


def _check_per_prompt(settings: GenerationSettings) -> None:
    for name in ("negative_prompt", "decode_timestep", "decode_noise_scale"):
        value = getattr(settings, name)
        legal = {settings.num_prompts} if name == "negative_prompt" else {1, settings.num_prompts}
        if isinstance(value, list) and len(value) not in legal:
            noun = "text" if name == "negative_prompt" else "number"
            raise RequestError(
                f"{name} holds {counted(len(value), noun)} for {counted(settings.num_prompts, 'prompt')}."
            )
