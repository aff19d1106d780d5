"""Known cells, encoded again beside what was made, since an encoder sees a cell's neighbours too.

Before sampling nothing is known of the hidden pixels, so the cells along their border are encoded beside a guess. After
it there is a better one: the decoded clip with the known pixels pasted in is encoded, and its latents replace those of
every cell that holds a known pixel, or lies beside one that holds nothing else. All others stay as they were sampled.

Coding loses something, most of all at a border where what was made and what is known do not quite fit. Each further
pass therefore adds to the known pixels, before they are encoded, what the passes before it lost of them (iterative
back-projection, Irani & Peleg 1991); what lies beside them and was made gives way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from vgen.diffusion.conditions import cell_strength
from vgen.pipelines.call.conventions import Convention
from vgen.pipelines.call.settings import GenerationSettings
from vgen.pipelines.coding.decode import decode_latents, paste_known
from vgen.pipelines.coding.encode import encode_pixels
from vgen.pipelines.coding.given_pixels import GivenPixels
from vgen.types import Strides


def renew_known(
    vae: Any,
    latents: Tensor,
    given: Sequence[GivenPixels],
    settings: GenerationSettings,
    convention: Convention,
    dtype: torch.dtype,
) -> Tensor:
    """Encode known cells again, beside what was made; does nothing where no condition has a mask.

    Args:
        vae: the CausalVideoVAE.
        latents: [B, C, f, h, w], normalised, as they were sampled.
        given: the conditions.
        settings: `known_passes`, how often; and how to decode.
        convention: how to decode.
        dtype: see `decode_latents`.
    Returns:
        Shape and dtype of `latents`.
    """
    if all(entry.mask is None for entry in given):
        return latents
    clips = settings.num_videos_per_prompt
    lost: Tensor | float = 0.0
    for index in range(settings.known_passes):
        video = decode_latents(vae, latents, settings, convention, dtype).clamp(-1, 1)
        known = paste_known(torch.zeros_like(video[:, :1]), [_as_ones(entry) for entry in given], True, clips)
        pasted = paste_known(video, given, True, clips)
        if index:  # before the first pass known cells were coded beside a guess; that loss is not theirs
            lost = lost + (pasted - video)
        told = (pasted + lost).to(vae.dtype)
        encoded = vae.normalize(encode_pixels(vae, told, settings, sample_posterior=False).float())
        latents = torch.where(cells_to_renew(known, vae.strides), encoded.to(latents), latents)
    return latents


def cells_to_renew(known: Tensor, strides: Strides) -> Tensor:
    """Cells that hold a known pixel, or lie beside one (in their frame) that holds nothing else.

    Args:
        known: [B, 1, F, H, W], 1 = known, 0 = not.
        strides: pixels per latent.
    Returns:
        bool [B, 1, f, h, w].
    """
    whole = cell_strength(known, strides)
    partly = 1 - cell_strength(1 - known, strides)
    frames = whole.shape[2]
    beside = F.max_pool2d(rearrange(whole, "b c f h w -> (b f) c h w"), 3, stride=1, padding=1)
    return (partly > 0) | (rearrange(beside, "(b f) c h w -> b c f h w", f=frames) > 0)


def _as_ones(entry: GivenPixels) -> GivenPixels:
    """The same condition on a clip of one channel, all of it 1."""
    return GivenPixels(torch.ones_like(entry.pixels[:, :1]), entry.frame_index, entry.strength, entry.mask)
