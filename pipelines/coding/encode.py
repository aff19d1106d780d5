"""Noise and encoded pixels that a pass starts from, drawn in the order that makes equal seeds give equal clips."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import repeat
from torch import Tensor

from vgen.diffusion.conditions import KnownLatents, cell_strength, num_extra_frames
from vgen.diffusion.hiding import hide_pixels
from vgen.diffusion.tokens import pack, token_grid
from vgen.pipelines.call.noise import draw
from vgen.pipelines.coding.coder import Coder
from vgen.pipelines.coding.given_pixels import GivenPixels
from vgen.pipelines.coding.soften import soften
from vgen.types import LatentShape


def prepare_noise_and_known(
    coder: Coder, given: Sequence[GivenPixels], shape: LatentShape, patch_size: int, device: torch.device
) -> tuple[Tensor, list[KnownLatents]]:
    """Draw the starting noise and encode what is given, in the order of the convention.

    Args:
        coder: of the pass.
        given: checked conditions.
        shape: latent size.
        patch_size: latents per token along rows and columns.
        device: where everything goes.
    Returns:
        Noise tokens [B, N, C * p * p], and the known latents.
    """
    if coder.convention.encode_before_noise:
        known = [encode_given(coder, entry, device, coder.settings.input_crf) for entry in given]
        return _noise(coder, shape, patch_size, device), known
    noise = _noise(coder, shape, patch_size, device)
    return noise, [encode_given(coder, entry, device, coder.settings.input_crf) for entry in given]


def _noise(coder: Coder, shape: LatentShape, patch_size: int, device: torch.device) -> Tensor:
    """The caller's noise as tokens, or a draw of it."""
    settings, channels = coder.settings, coder.vae.config.latent_channels
    if settings.latents is not None:
        latents = settings.latents.to(device=device, dtype=torch.float32)
        return pack(latents, patch_size) if latents.ndim == 5 else latents
    if coder.convention.draw_as_tokens:
        tokens = (settings.batch_size, token_grid(shape, patch_size).num_tokens, channels * patch_size**2)
        return draw(tokens, settings.generator, device)
    return pack(draw((settings.batch_size, channels, *shape), settings.generator, device), patch_size)


def encode_given(coder: Coder, given: GivenPixels, device: torch.device, input_crf: int = 0) -> KnownLatents:
    """Encode one condition, hidden pixels replaced first, and draw the noise of its extra tokens.

    Args:
        coder: of the pass.
        given: P = 1 or P prompts.
        device: where to encode.
        input_crf: how much the frames are softened first, see vgen.pipelines.coding.soften.
    Returns:
        Latents [1 or B, C, f, h, w], float32.
    """
    settings, convention = coder.settings, coder.convention
    pixels, strength = given.pixels, given.strength.view(-1, 1, 1, 1, 1)
    if given.mask is not None:
        pixels = hide_pixels(pixels, given.mask)
        strength = strength * cell_strength(given.mask, coder.vae.strides)
    pixels = soften(pixels, input_crf)  # after hiding, so that no hidden pixel bleeds into its neighbours
    pixels, strength = (  # one entry per clip where there is one per prompt; one for all stays one
        repeat(tensor, "p ... -> (p n) ...", n=settings.num_videos_per_prompt if tensor.shape[0] > 1 else 1)
        for tensor in (pixels, strength)
    )
    latents = coder.encode(pixels.to(device=device, dtype=coder.vae.dtype), convention.sample_posterior)
    extra_frames = num_extra_frames(given.frame_index, latents.shape[2], convention.prefix_latent_frames)
    noise = None
    if extra_frames:
        rows = settings.batch_size if isinstance(settings.generator, list) else latents.shape[0]
        noise = draw((rows, latents.shape[1], extra_frames, *latents.shape[3:]), settings.generator, device)
    return KnownLatents(latents, given.frame_index, strength.to(device), noise)
