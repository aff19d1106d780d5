"""Latents to frames: decode, paste what was given, convert."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from einops import repeat
from torch import Tensor

from vgen.diffusion.latent_statistics import tone_map
from vgen.engine.speed.host_copy import HostFrames
from vgen.pipelines.call.conventions import Convention
from vgen.pipelines.call.noise import draw
from vgen.pipelines.call.settings import GenerationSettings
from vgen.pipelines.coding.given_pixels import GivenPixels
from vgen.pipelines.coding.resize import resize_video
from vgen.pipelines.coding.vae_memory import within_memory
from vgen.types import LatentShape


def decode_frames(
    vae: Any,
    latents: Tensor,
    decoding: GenerationSettings,
    output: GenerationSettings,
    given: Sequence[GivenPixels],
    convention: Convention,
    dtype: torch.dtype,
    processor: Any,
) -> Any:
    """What a call gives out for the latents of its last pass.

    Args:
        vae, latents, convention, dtype: see `decode_latents`.
        decoding: settings of the last pass.
        output: settings of the call: size, `output_type` and `keep_known_pixels`.
        given: pasted in, at the size of `output`.
        processor: diffusers' VideoProcessor.
    """
    if output.output_type == "latent":
        return latents
    same_size = (decoding.height, decoding.width) == (output.height, output.width)
    if output.output_type == "uint8" and same_size:
        return decode_to_bytes(vae, latents, decoding, convention, dtype, given)
    video = decode_latents(vae, latents, decoding, convention, dtype)
    if not same_size:
        video = resize_video(video, output.height, output.width)
    video = paste_known(video, given, output.keep_known_pixels, output.num_videos_per_prompt)
    return to_output(video, output.output_type, processor)


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
    video: Tensor | None = None
    done = 0
    for piece in _pieces(vae, latents, settings, convention, dtype):
        if piece.shape[2] == settings.num_frames:
            return piece.float()
        if video is None:
            video = piece.new_empty(*piece.shape[:2], settings.num_frames, *piece.shape[3:], dtype=torch.float32)
        video[:, :, done : done + piece.shape[2]] = piece
        done += piece.shape[2]
        del piece  # before the next one is made
    assert video is not None
    assert done == settings.num_frames
    return video


def decode_to_bytes(
    vae: Any,
    latents: Tensor,
    settings: GenerationSettings,
    convention: Convention,
    dtype: torch.dtype,
    given: Sequence[GivenPixels] = (),
) -> np.ndarray:
    """Decode normalised latents to frames on the host, piece by piece as the decoder gives them out.

    Args:
        vae, latents, settings, convention, dtype: see `decode_latents`.
        given: pasted in as by `paste_known`.
    Returns:
        uint8 [B, F, H, W, 3]: the same as `decode_latents`, `paste_known` and rounding after one another.
    """
    frames = HostFrames(settings.num_frames)
    for piece in _pieces(vae, latents, settings, convention, dtype):
        keep, clips = settings.keep_known_pixels, settings.num_videos_per_prompt
        frames.append(paste_known(piece.float(), given, keep, clips, frames.done))
        del piece
    return frames.finish()


def _pieces(
    vae: Any, latents: Tensor, settings: GenerationSettings, convention: Convention, dtype: torch.dtype
) -> Iterator[Tensor]:
    """[B, 3, F, H, W] each, of the VAE's dtype, as the decoder gives them out."""
    raw, timestep = _raw_latents(vae, latents, settings, convention, dtype)
    raw = raw.to(vae.dtype)
    with within_memory(vae, LatentShape(*raw.shape[2:]), raw.shape[0], settings.vae_memory):
        if vae.use_slicing and raw.shape[0] > 1:  # one clip after the other, all of them to the end
            yield vae.decode(raw, timestep, return_dict=False, generator=settings.generator)[0]
        else:
            yield from vae.decode_in_pieces(raw, timestep, generator=settings.generator)


def _raw_latents(
    vae: Any, latents: Tensor, settings: GenerationSettings, convention: Convention, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """Latents as the decoder takes them, with their noise mixed in, and its timestep."""
    compression = settings.tone_map_compression_ratio
    if not vae.config.timestep_conditioning:
        return vae.denormalize(tone_map(latents, compression)).to(dtype), None
    timestep = scale = _per_clip(settings.decode_timestep, settings, latents.device, dtype)
    if settings.decode_noise_scale is not None:
        scale = _per_clip(settings.decode_noise_scale, settings, latents.device, dtype)
    noise = draw(tuple(latents.shape), settings.generator, latents.device, dtype)
    scale = scale.view(-1, 1, 1, 1, 1)
    if convention.mix_decode_noise_normalized:
        mixed = torch.lerp(latents, noise.to(latents), scale.to(latents))
        return vae.denormalize(tone_map(mixed, compression)).to(dtype), timestep
    return torch.lerp(vae.denormalize(tone_map(latents, compression)).to(dtype), noise, scale), timestep


def paste_known(
    video: Tensor, given: Sequence[GivenPixels], keep: bool | None, num_videos_per_prompt: int, start: int = 0
) -> Tensor:
    """Put pixels given with strength 1 back where they were given.

    Args:
        video: [B, 3, F, H, W] in [-1, 1].
        given: the conditions.
        keep: True: of all conditions; None: of those with a mask; False: none.
        num_videos_per_prompt: clips for each prompt.
        start: which frame of the clip the first one of `video` is.
    Returns:
        [B, 3, F, H, W].
    """
    for entry in given:
        if keep is False or (keep is None and entry.mask is None) or entry.frame_index < 0:
            continue
        first = max(entry.frame_index, start)
        end = min(entry.frame_index + entry.num_frames, start + video.shape[2])
        if first >= end:
            continue
        here, of_entry = (slice(first - zero, end - zero) for zero in (start, entry.frame_index))
        known = (entry.strength == 1).view(-1, 1, 1, 1, 1)
        if entry.mask is not None:
            known = known & (entry.mask[:, :, of_entry] == 1)
        known, pixels = (
            repeat(tensor, "p ... -> (p n) ...", n=num_videos_per_prompt if tensor.shape[0] > 1 else 1).to(video.device)
            for tensor in (known, entry.pixels[:, :, of_entry])
        )
        pasted = torch.where(known, pixels.to(video), video[:, :, here])
        video = torch.cat([video[:, :, : here.start], pasted, video[:, :, here.stop :]], dim=2)
    return video


def to_output(video: Tensor, output_type: str, processor: Any) -> Any:
    """Decoded pixels as the caller wants them.

    Args:
        video: [B, 3, F, H, W], about [-1, 1], float32; overwritten.
        output_type: "pt" [B, F, 3, H, W] or "np" [B, F, H, W, 3], in [0, 1]; "uint8" [B, F, H, W, 3]; "pil".
        processor: diffusers' VideoProcessor, for "pil".
    """
    if output_type == "uint8":
        frames = HostFrames(video.shape[2])
        frames.append(video)
        return frames.finish()
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
