"""Latents to frames: decode, paste what was given, convert."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from einops import repeat
from torch import Tensor

from vgen.diffusion.latent_statistics import tone_map
from vgen.pipelines.conditioning import GivenPixels
from vgen.pipelines.conventions import Convention
from vgen.pipelines.noise import draw
from vgen.pipelines.settings import GenerationSettings
from vgen.pipelines.vae_memory import within_memory
from vgen.types import LatentShape


def decode_latents(
    vae: Any, latents: Tensor, settings: GenerationSettings, convention: Convention, dtype: torch.dtype
) -> Tensor:
    """Decode normalised latents.

    Args:
        vae: the CausalVideoVAE.
        latents: [B, C, f, h, w], normalised, float32.
        settings: decode timestep and noise, tone map, and the generator.
        convention: where the decode noise is mixed in.
        dtype: of the denormalised latents, before the VAE's own.
    Returns:
        [B, 3, F, H, W], about [-1, 1], float32.
    """
    timestep = None
    compression = settings.tone_map_compression_ratio
    if vae.config.timestep_conditioning:
        timestep = _per_clip(settings.decode_timestep, settings, latents.device, dtype)
        scale = timestep
        if settings.decode_noise_scale is not None:
            scale = _per_clip(settings.decode_noise_scale, settings, latents.device, dtype)
        noise = draw(tuple(latents.shape), settings.generator, latents.device, dtype)
        scale = scale.view(-1, 1, 1, 1, 1)
        if convention.mix_decode_noise_normalized:
            mixed = torch.lerp(latents, noise.to(latents), scale.to(latents))
            latents = vae.denormalize(tone_map(mixed, compression)).to(dtype)
        else:
            latents = torch.lerp(vae.denormalize(tone_map(latents, compression)).to(dtype), noise, scale)
    else:
        latents = vae.denormalize(tone_map(latents, compression)).to(dtype)
    with within_memory(vae, LatentShape(*latents.shape[2:]), latents.shape[0], settings.vae_memory):
        video = vae.decode(latents.to(vae.dtype), timestep, return_dict=False, generator=settings.generator)[0]
    return video.float()


def paste_known(video: Tensor, given: Sequence[GivenPixels], keep: bool | None, num_videos_per_prompt: int) -> Tensor:
    """Put pixels given with strength 1 back where they were given.

    Args:
        video: [B, 3, F, H, W] in [-1, 1].
        given: the conditions.
        keep: True: of all conditions; None: of those with a mask; False: none.
        num_videos_per_prompt: clips for each prompt.
    Returns:
        [B, 3, F, H, W].
    """
    for entry in given:
        if keep is False or (keep is None and entry.mask is None) or entry.frame_index < 0:
            continue
        here = slice(entry.frame_index, entry.frame_index + entry.num_frames)
        known = (entry.strength == 1).view(-1, 1, 1, 1, 1)
        if entry.mask is not None:
            known = known & (entry.mask == 1)
        known, pixels = (
            repeat(tensor, "p ... -> (p n) ...", n=num_videos_per_prompt if tensor.shape[0] > 1 else 1).to(video.device)
            for tensor in (known, entry.pixels)
        )
        pasted = torch.where(known, pixels.to(video), video[:, :, here])
        video = torch.cat([video[:, :, : here.start], pasted, video[:, :, here.stop :]], dim=2)
    return video


def to_output(video: Tensor, output_type: str, processor: Any) -> Any:
    """Decoded pixels as the caller wants them.

    Args:
        video: [B, 3, F, H, W], about [-1, 1], float32; overwritten.
        output_type: "pt" [B, F, 3, H, W] or "np" [B, F, H, W, 3], in [0, 1]; "pil".
        processor: diffusers' VideoProcessor, for "pil".
    """
    if output_type not in ("pt", "np"):
        return processor.postprocess_video(video, output_type=output_type)
    video = video.mul_(0.5).add_(0.5).clamp_(0, 1)  # in place: a clip is large, and nobody else has it
    if output_type == "pt":
        return video.transpose(1, 2)
    return video.permute(0, 2, 3, 4, 1).cpu().numpy()


def _per_clip(
    value: float | list[float], settings: GenerationSettings, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """One number, or one a prompt, as one a clip: [B]."""
    values = value if isinstance(value, list) else [value]
    tensor = torch.tensor(values, device=device, dtype=dtype)
    if len(values) == 1:
        return tensor.expand(settings.batch_size).contiguous()
    return tensor.repeat_interleave(settings.num_videos_per_prompt)
