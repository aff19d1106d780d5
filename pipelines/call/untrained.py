"""Warnings where a call asks for what its model was not trained for, see `vgen.request.trained`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vgen.diffusion.tokens import token_strides
from vgen.pipelines.call.settings import GenerationSettings
from vgen.pipelines.coding.given_pixels import GivenPixels
from vgen.request.trained import Trained, warn


def warn_untrained(pipe: Any, settings: GenerationSettings, given: Sequence[GivenPixels], clip: Any) -> None:
    """Warn of a size, a length, words or pictures that a model was not trained for.

    Args:
        pipe: a pipeline; its configuration holds the statement.
        settings: of the call.
        given: its conditions.
        clip: what it starts from: GivenPixels, latents or None.
    """
    trained = Trained.read(pipe.config)
    shape = settings.shape
    trained.warn_of_size(shape, token_strides(pipe.vae.strides, pipe.patch_size))
    adapted = getattr(pipe.transformer, "_hf_peft_config_loaded", False)  # a LoRA may know other words
    if settings.prompt is not None and not adapted:
        for prompt in [settings.prompt] if isinstance(settings.prompt, str) else dict.fromkeys(settings.prompt):
            trained.warn_of_words(prompt)
    least = trained.reconstruction_psnr
    pixels = [entry for entry in (*given, clip) if isinstance(entry, GivenPixels)]
    if least is not None and any(_psnr_of_first(pipe, entry) < least for entry in pixels):
        warn("what is given looks like nothing that the model was trained on: it cannot keep it, nor go on from it.")


def _psnr_of_first(pipe: Any, given: GivenPixels) -> float:
    """dB that the VAE keeps of the known pixels of a condition's first frame."""
    mask = None if given.mask is None else given.mask[:1, :, :1]
    return kept_psnr(pipe.vae, given.pixels[:1, :, :1].to(pipe._execution_device), mask)


@torch.no_grad()
def kept_psnr(vae: Any, pixels: Tensor, mask: Tensor | None = None) -> float:
    """dB that a VAE keeps of pixels.

    Args:
        vae: the CausalVideoVAE.
        pixels: [1, 3, F, H, W] in [-1, 1].
        mask: [1, 1, F, H, W], 1 where it is looked at; None: everywhere.
    """
    pixels = pixels.to(vae.dtype)
    time = pixels.new_zeros(1) if vae.config.timestep_conditioning else None
    noise = torch.Generator().manual_seed(0)
    latents = vae.encode(pixels).latent_dist.mode()
    kept = vae.decode(latents, time, return_dict=False, generator=noise)[0]
    errors = (kept.float().clamp(-1, 1) - pixels.float()).square()
    weights = torch.ones_like(errors) if mask is None else mask.to(errors).expand_as(errors)
    error = (errors * weights).sum() / weights.sum().clamp(min=1e-6)
    return float(10 * torch.log10(4 / error.clamp(min=1e-10)))
