"""Given material that a clip's own latents cannot lend, since those have seen what is hidden: it is encoded apart.

Later frames and regions are rendered again, their hidden pixels replaced, and encoded as a pipeline would: the unified
mask of VDT, on tokens that each have a timestep of their own.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vgen.diffusion.conditions import REFERENCE_FRAME, KnownLatents, cell_strength
from vgen.diffusion.hiding import hide_pixels
from vgen.training.randomness import Keys
from vgen.types import Strides

ENCODED_TASKS = ("suffix", "frames", "region")
"""The last frames of a clip; single frames anywhere; a region of every frame, its inside or its outside."""

MOST_FRAMES = 4
"""Single frames given at once."""

Encode = Callable[[Tensor], Tensor]
"""Pixels [B, 3, F, H, W] in [-1, 1] to normalised latents [B, C, f, h, w]."""


def encoded_material(task: str, video: Tensor, encode: Encode, strides: Strides, keys: Keys) -> list[KnownLatents]:
    """The given material of one of `ENCODED_TASKS`.

    Args:
        task: which.
        video: [B, 3, F, H, W] in [-1, 1], the whole clips; F > 1.
        encode: of the VAE.
        strides: pixels per latent.
        keys: draws what is given: the same frames for all samples, a region for each.
    """
    frames = video.shape[2]
    if task == "suffix":
        latent_frames = (frames - 1) // strides.temporal
        count = 1 + strides.temporal * int(torch.randint(0, latent_frames, (), generator=keys.generator("suffix")))
        return [KnownLatents(encode(video[:, :, -count:]), frame_index=frames - count)]
    if task == "frames":
        chosen = _some_frames(frames, strides.temporal, keys)
        return [KnownLatents(encode(video[:, :, index : index + 1]), frame_index=index) for index in chosen]
    mask = region_masks(video.shape[0], frames, video.shape[3], video.shape[4], keys)
    return [KnownLatents(encode(hide_pixels(video, mask)), strength=cell_strength(mask, strides))]


def reference_material(picture: Tensor, encode: Encode) -> list[KnownLatents]:
    """A picture [B, 3, 1, H, W] in [-1, 1] of what the clip shows, as a reference."""
    return [KnownLatents(encode(picture), frame_index=REFERENCE_FRAME)]


def _some_frames(frames: int, stride: int, keys: Keys) -> list[int]:
    """Every few frames from the first on, or a few anywhere."""
    generator = keys.generator("frames")
    if float(torch.rand((), generator=generator)) < 0.5:
        step = stride * int(torch.randint(1, 3, (), generator=generator))
        return list(range(0, frames, step))
    count = int(torch.randint(1, min(MOST_FRAMES, frames - 1) + 1, (), generator=generator))
    return sorted(torch.randperm(frames, generator=generator)[:count].tolist())


def region_masks(batch: int, frames: int, height: int, width: int, keys: Keys) -> Tensor:
    """A box for each sample, which moves in half of them; half of the boxes are hidden, half are what is given.

    Returns:
        float [B, 1, F, H, W], 1 = given; neither all given nor all hidden.
    """
    draws = keys.rows("region", batch, lambda rows, drawn: torch.rand(rows, 8, generator=drawn))
    times = torch.linspace(0, 1, frames)[:, None, None]
    rows, columns = torch.arange(height)[None, :, None], torch.arange(width)[None, None, :]
    masks = torch.empty(batch, 1, frames, height, width)
    for sample, (tall, wide, top, left, to_top, to_left, moves, hidden) in enumerate(draws.tolist()):
        box = [round(side * (0.25 + 0.5 * share)) for side, share in ((height, tall), (width, wide))]
        start = [(side - length) * share for side, length, share in zip((height, width), box, (top, left), strict=True)]
        end = [
            (side - length) * share for side, length, share in zip((height, width), box, (to_top, to_left), strict=True)
        ]
        end = end if moves < 0.5 else start
        first_row, first_column = (a + (b - a) * times for a, b in zip(start, end, strict=True))
        inside = (rows >= first_row) & (rows < first_row + box[0])
        inside = inside & (columns >= first_column) & (columns < first_column + box[1])
        masks[sample, 0] = (~inside if hidden < 0.5 else inside).float()
    return masks
