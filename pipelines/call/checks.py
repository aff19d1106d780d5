"""What a pipeline refuses before anything is computed: shapes and counts; numbers are checked as they are declared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from vgen.diffusion.tokens import token_grid, token_strides
from vgen.errors import RequestError, ShapeError, counted
from vgen.pipelines.call.settings import GenerationSettings
from vgen.request.steps import check_shift
from vgen.types import LatentShape, Strides, VideoShape


def check_call(pipe: Any, settings: GenerationSettings) -> LatentShape:
    """Check a call of a pipeline as far as no component has to run, see `check_settings` and `check_shift`."""
    shape = check_settings(
        settings, pipe.vae.strides, pipe.vae.config.latent_channels, pipe.patch_size, pipe._callback_tensor_inputs
    )
    check_shift(
        pipe.scheduler.config,
        max(settings.num_inference_steps, settings.draft_steps),
        VideoShape(settings.num_frames, settings.height, settings.width),
        token_strides(pipe.vae.strides, pipe.patch_size),
        settings.sigmas,
    )
    return shape


def check_start(settings: GenerationSettings, starts_from_clip: bool) -> None:
    """Refuse a call that is to run the end of the schedule from noise alone."""
    if not starts_from_clip and settings.denoise_strength < 1:
        raise RequestError(
            f"denoise_strength={settings.denoise_strength:g} needs a clip to start from: use VideoToVideoPipeline."
        )


def check_settings(
    settings: GenerationSettings, strides: Strides, channels: int, patch_size: int, callback_tensors: Sequence[str]
) -> LatentShape:
    """Check everything that does not need a component to be run.

    Args:
        settings: of the call.
        strides: pixels per latent.
        channels: latent channels.
        patch_size: latents per token along rows and columns; sizes must fit whole tokens.
        callback_tensors: names that `callback_on_step_end_tensor_inputs` may hold.
    Returns:
        The latent size of the clip.
    Raises:
        RequestError: names the field, the value, the rule and what would fit.
    """
    _check_text(settings)
    _check_per_prompt(settings)
    video_shape = VideoShape(settings.num_frames, settings.height, settings.width)
    video_shape.check(token_strides(strides, patch_size))
    shape = video_shape.latent(strides)
    generators = settings.generator
    if isinstance(generators, list) and len(generators) != settings.batch_size:
        raise RequestError(
            f"generator holds {counted(len(generators), 'generator')} for {counted(settings.batch_size, 'clip')}."
        )
    if settings.latents is not None:
        _check_latents(settings.latents, settings.batch_size, channels, shape, patch_size)
    unknown = [name for name in settings.callback_on_step_end_tensor_inputs if name not in callback_tensors]
    if unknown:
        raise RequestError(f"callback_on_step_end_tensor_inputs={unknown} must be among {', '.join(callback_tensors)}.")
    return shape


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


def _check_latents(latents: Tensor, batch: int, channels: int, shape: LatentShape, patch_size: int) -> None:
    tokens = (batch, token_grid(shape, patch_size).num_tokens, channels * patch_size**2)
    legal = ((batch, channels, *shape), tokens)
    if tuple(latents.shape) not in legal:
        raise ShapeError(f"latents has shape {tuple(latents.shape)}: it must be {legal[0]} or {legal[1]}.")
