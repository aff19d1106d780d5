"""Known cells, encoded again next to what was made, since an encoder sees a cell's neighbours too.

Before sampling nothing is known of the hidden pixels, so the cells along their border are encoded next to a guess.
After it there is a better one: the decoded clip with the known pixels pasted in is encoded, and its latents replace
those of every cell that holds a known pixel, or lies next to one that holds nothing else. All others stay as they were
sampled.

Coding loses something, most of all at a border where what was made and what is known do not quite fit. Each further
pass therefore adds to the known pixels, before they are encoded, what the passes before it lost of them (iterative
back-projection, Irani & Peleg 1991); what lies next to them and was made gives way.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from vgen.diffusion.conditions import cell_strength
from vgen.pipelines.coding.coder import Coder
from vgen.pipelines.coding.decode import paste_known
from vgen.pipelines.coding.given_pixels import GivenPixels
from vgen.types import Strides


def renew_known(coder: Coder, latents: Tensor, given: Sequence[GivenPixels]) -> Tensor:
    """Encode known cells again, next to what was made, `known_passes` times.

    Args:
        coder: of the pass that made the latents.
        latents: [B, C, f, h, w], normalised, as they were sampled.
        given: the conditions of the pass.
    Returns:
        Shape and dtype of `latents`.
    """
    clips, strides = coder.settings.num_videos_per_prompt, coder.vae.strides
    lost: Tensor | float = 0.0
    for index in range(coder.settings.known_passes):
        video = coder.decode(latents).clamp(-1, 1)
        known = paste_known(torch.zeros_like(video[:, :1]), [_as_ones(entry) for entry in given], True, clips)
        pasted = paste_known(video, given, True, clips)
        if index:  # before the first pass known cells were coded next to a guess; that loss is not theirs
            lost = lost + (pasted - video)
        encoded = coder.encode((pasted + lost).to(coder.vae.dtype), sample_posterior=False)
        latents = torch.where(cells_to_renew(known, strides), encoded.to(latents), latents)
    return latents


def cells_to_renew(known: Tensor, strides: Strides) -> Tensor:
    """Cells that hold a known pixel, or lie next to one (in their frame) that holds nothing else.

    Args:
        known: [B, 1, F, H, W], 1 = known, 0 = not.
        strides: pixels per latent.
    Returns:
        bool [B, 1, f, h, w].
    """
    whole = cell_strength(known, strides)
    partly = 1 - cell_strength(1 - known, strides)
    frames = whole.shape[2]
    neighbours = F.max_pool2d(rearrange(whole, "b c f h w -> (b f) c h w"), 3, stride=1, padding=1)
    return (partly > 0) | (rearrange(neighbours, "(b f) c h w -> b c f h w", f=frames) > 0)


def _as_ones(entry: GivenPixels) -> GivenPixels:
    """The same condition on a clip of one channel, all of it 1."""
    return GivenPixels(torch.ones_like(entry.pixels[:, :1]), entry.frame_index, entry.strength, entry.mask)
