"""Noise and encoded pixels that a pass starts from, drawn in the order that makes equal seeds give equal clips."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from einops import repeat
from torch import Tensor

from vgen.diffusion.conditions import KnownLatents, cell_strength, num_extra_frames
from vgen.diffusion.hiding import hide_pixels
from vgen.diffusion.tokens import pack, token_grid
from vgen.pipelines.call.conventions import Convention
from vgen.pipelines.call.noise import draw
from vgen.pipelines.call.settings import GenerationSettings
from vgen.pipelines.coding.given_pixels import GivenPixels
from vgen.pipelines.coding.soften import soften
from vgen.pipelines.coding.vae_memory import within_memory
from vgen.types import LatentShape, VideoShape


def prepare_noise_and_known(
    vae: Any,
    given: Sequence[GivenPixels],
    settings: GenerationSettings,
    shape: LatentShape,
    patch_size: int,
    convention: Convention,
    device: torch.device,
) -> tuple[Tensor, list[KnownLatents]]:
    """Draw the starting noise and encode what is given.

    Args:
        vae: the CausalVideoVAE.
        given: checked conditions.
        settings: of the call.
        shape: latent size.
        patch_size: latents per token along rows and columns.
        convention: the order of the draws, and how pixels are encoded.
        device: where everything goes.
    Returns:
        Noise tokens [B, N, C * p * p], and the known latents.
    """
    channels = vae.config.latent_channels

    def noise() -> Tensor:
        if settings.latents is None and convention.draw_as_tokens:
            tokens = (settings.batch_size, token_grid(shape, patch_size).num_tokens, channels * patch_size**2)
            return draw(tokens, settings.generator, device)
        if settings.latents is None:
            return pack(draw((settings.batch_size, channels, *shape), settings.generator, device), patch_size)
        latents = settings.latents.to(device=device, dtype=torch.float32)
        return pack(latents, patch_size) if latents.ndim == 5 else latents

    def known() -> list[KnownLatents]:
        return [encode_given(vae, entry, settings, convention, device, settings.input_crf) for entry in given]

    if convention.encode_before_noise:
        encoded = known()
        return noise(), encoded
    tokens = noise()
    return tokens, known()


def encode_given(
    vae: Any,
    given: GivenPixels,
    settings: GenerationSettings,
    convention: Convention,
    device: torch.device,
    input_crf: int = 0,
) -> KnownLatents:
    """Encode one condition, hidden pixels replaced first, and draw the noise of its extra tokens.

    Args:
        vae: the CausalVideoVAE.
        given: P = 1 or P prompts.
        settings: of the call; its generator draws.
        convention: see `Convention`.
        device: where to encode.
        input_crf: how much the frames are softened first, see vgen.pipelines.coding.soften.
    Returns:
        Latents [1 or B, C, f, h, w], float32.
    """
    pixels, strength = given.pixels, given.strength.view(-1, 1, 1, 1, 1)
    if given.mask is not None:
        pixels = hide_pixels(pixels, given.mask)
        strength = strength * cell_strength(given.mask, vae.strides)
    pixels = soften(pixels, input_crf)  # after hiding, so that no hidden pixel bleeds into its neighbours
    pixels, strength = (_for_clips(tensor, settings) for tensor in (pixels, strength))
    raw = encode_pixels(vae, pixels.to(device=device, dtype=vae.dtype), settings, convention.sample_posterior)
    latents = vae.normalize(raw.float())
    extra_frames = num_extra_frames(given.frame_index, latents.shape[2], convention.prefix_latent_frames)
    noise = None
    if extra_frames:
        rows = settings.batch_size if isinstance(settings.generator, list) else latents.shape[0]
        noise = draw((rows, latents.shape[1], extra_frames, *latents.shape[3:]), settings.generator, device)
    return KnownLatents(latents, given.frame_index, strength.to(device), noise)


def _for_clips(tensor: Tensor, settings: GenerationSettings) -> Tensor:
    """One entry a clip where there is one a prompt; one for all stays one."""
    if tensor.shape[0] == 1:
        return tensor
    return repeat(tensor, "p ... -> (p n) ...", n=settings.num_videos_per_prompt)


def encode_pixels(vae: Any, pixels: Tensor, settings: GenerationSettings, sample_posterior: bool) -> Tensor:
    """Encode clips one by one, within the call's memory.

    Args:
        vae: the CausalVideoVAE.
        pixels: [1 or B, 3, F, H, W] in [-1, 1], of the VAE's dtype and device.
        settings: `vae_memory`, and the generators.
        sample_posterior: whether to draw from each posterior, with its clip's own generator, or to take its mean.
    Returns:
        Raw latents [1 or B, C, f, h, w].
    """
    shape = VideoShape(*pixels.shape[2:]).latent(vae.strides)
    with within_memory(vae, shape, 1, settings.vae_memory, encode=True):
        posteriors = [vae.encode(clip).latent_dist for clip in pixels.split(1)]
    if not sample_posterior:
        return torch.cat([posterior.mean for posterior in posteriors])
    generator = settings.generator
    if not isinstance(generator, list):
        return torch.cat([posterior.sample(generator) for posterior in posteriors])
    if len(posteriors) == 1:
        posteriors = posteriors * len(generator)
    return torch.cat([posterior.sample(source) for posterior, source in zip(posteriors, generator, strict=True)])
