"""What a pipeline refuses before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

from torch import Tensor

from vgen.diffusion.tokens import token_grid, token_strides
from vgen.errors import RequestError, ShapeError, counted
from vgen.pipelines.call.settings import GenerationSettings
from vgen.pipelines.coding.soften import LARGEST_CRF
from vgen.request.fields import parse_bytes
from vgen.request.steps import MAX_STEPS, check_shift
from vgen.types import LatentShape, Strides, VideoShape

OUTPUT_TYPES = ("pil", "np", "pt", "uint8", "latent")
GUIDANCE_BATCHING = ("batched", "separate")


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
    _check_numbers(settings)
    _check_text(settings)
    video_shape = VideoShape(settings.num_frames, settings.height, settings.width)
    video_shape.check(token_strides(strides, patch_size))
    shape = video_shape.latent(strides)
    _check_decoding(settings)
    if isinstance(settings.vae_memory, str) and settings.vae_memory != "auto":
        parse_bytes(settings.vae_memory)
    generators = settings.generator
    if isinstance(generators, list) and len(generators) != settings.batch_size:
        raise RequestError(
            f"generator holds {counted(len(generators), 'generator')} for {counted(settings.batch_size, 'clip')}."
        )
    if settings.latents is not None:
        _check_latents(settings.latents, settings.batch_size, channels, shape, patch_size)
    if settings.output_type not in OUTPUT_TYPES:
        raise RequestError(f"output_type={settings.output_type!r} must be one of {', '.join(OUTPUT_TYPES)}.")
    unknown = [name for name in settings.callback_on_step_end_tensor_inputs if name not in callback_tensors]
    if unknown:
        raise RequestError(f"callback_on_step_end_tensor_inputs={unknown} must be among {', '.join(callback_tensors)}.")
    return shape


def _check_numbers(settings: GenerationSettings) -> None:
    counts = ("height", "width", "num_frames", "num_inference_steps", "max_sequence_length", "num_videos_per_prompt")
    for name in counts:
        value = getattr(settings, name)
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
            raise RequestError(f"{name}={value!r} must be a whole number of 1 or more.")
    if not _is_number(settings.frame_rate) or settings.frame_rate <= 0:
        raise RequestError(f"frame_rate={settings.frame_rate!r} must be a number above 0, for instance 24.")
    noise_scale, strength = settings.image_cond_noise_scale, settings.denoise_strength
    if not _is_number(noise_scale) or noise_scale < 0:
        raise RequestError(f"image_cond_noise_scale={noise_scale!r} must be a number of 0 or more.")
    if not _is_number(strength) or not 0 < strength <= 1:
        raise RequestError(f"denoise_strength={strength!r} must be above 0 and at most 1; 1 starts from noise alone.")
    crf = settings.input_crf
    if not isinstance(crf, Integral) or isinstance(crf, bool) or not 0 <= crf <= LARGEST_CRF:
        raise RequestError(f"input_crf={crf!r} must be a whole number from 0 (as it is) to {LARGEST_CRF}.")
    passes = settings.known_passes
    if not isinstance(passes, Integral) or isinstance(passes, bool) or passes < 0:
        raise RequestError(f"known_passes={passes!r} must be a whole number of 0 (none) or more.")
    steps = settings.draft_steps
    if not isinstance(steps, Integral) or isinstance(steps, bool) or not 0 <= steps <= MAX_STEPS:
        raise RequestError(f"draft_steps={steps!r} must be a whole number from 0 (no draft) to {MAX_STEPS}.")
    compression = settings.tone_map_compression_ratio
    if not _is_number(compression) or not 0 <= compression <= 1:
        raise RequestError(f"tone_map_compression_ratio={compression!r} must be in [0, 1]; 0 is off.")
    if settings.guidance_batching not in GUIDANCE_BATCHING:
        legal = " or ".join(map(repr, GUIDANCE_BATCHING))
        raise RequestError(f"guidance_batching={settings.guidance_batching!r} must be {legal}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(float(value))


def _check_text(settings: GenerationSettings) -> None:
    prompt, embeds = settings.prompt, settings.prompt_embeds
    if (prompt is None) == (embeds is None):
        raise RequestError('Give either prompt or prompt_embeds, and not both; prompt="" is allowed.')
    if prompt is not None and not _is_text(prompt):
        raise RequestError(f"prompt is a {type(prompt).__name__}: it must be a string or a list of one or more.")
    negative = settings.negative_prompt
    if negative is not None:
        if not _is_text(negative):
            raise RequestError(f"negative_prompt is a {type(negative).__name__}: it must be a string or a list.")
        if isinstance(negative, list) and len(negative) != settings.num_prompts:
            raise RequestError(
                f"negative_prompt holds {counted(len(negative), 'text')} for {counted(settings.num_prompts, 'prompt')}."
            )
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


def _is_text(value: Any) -> bool:
    texts = value if isinstance(value, list) else [value]
    return bool(texts) and all(isinstance(text, str) for text in texts)


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


def _check_decoding(settings: GenerationSettings) -> None:
    for name in ("decode_timestep", "decode_noise_scale"):
        value = getattr(settings, name)
        if value is None:
            continue
        values = value if isinstance(value, list) else [value]
        if len(values) not in (1, settings.num_prompts):
            raise RequestError(
                f"{name} holds {counted(len(values), 'number')} for {counted(settings.num_prompts, 'prompt')}."
            )
        if not all(_is_number(entry) and 0 <= entry <= 1 for entry in values):
            raise RequestError(f"{name}={value!r} must be in [0, 1].")


def _check_latents(latents: Tensor, batch: int, channels: int, shape: LatentShape, patch_size: int) -> None:
    tokens = (batch, token_grid(shape, patch_size).num_tokens, channels * patch_size**2)
    legal = ((batch, channels, *shape), tokens)
    if tuple(latents.shape) not in legal:
        raise ShapeError(f"latents has shape {tuple(latents.shape)}: it must be {legal[0]} or {legal[1]}.")
