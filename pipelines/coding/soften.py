"""Given pixels made as soft as the frames of compressed video that a model was trained on.

A picture that is sharper than any training frame is taken for a still: the clip then hardly moves. Lightricks' own
code therefore blurs what is given a little and codes it with H.264; diffusers leaves it out.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

BLUR_SIGMA = 1.0
"""Pixels, of a kernel of 3 x 3."""


def soften(pixels: Tensor, crf: int) -> Tensor:
    """Blur, and code each frame with H.264.

    Args:
        pixels: [P, 3, F, H, W] in [-1, 1], on the CPU.
        crf: constant rate factor of H.264, up to 51; 0 leaves the pixels as they are.
    Returns:
        [P, 3, F, H, W] in [-1, 1].
    """
    if crf == 0:
        return pixels
    from vgen.io.media.compression import as_compressed

    prompts, channels, num_frames, height, width = pixels.shape
    side = math.exp(-0.5 / BLUR_SIGMA**2)
    line = torch.tensor([side, 1.0, side]) / (1.0 + 2.0 * side)
    kernel = (line[:, None] * line).expand(channels, 1, 3, 3)
    frames = pixels.float().transpose(1, 2).reshape(-1, channels, height, width)
    blurred = F.conv2d(F.pad(frames, (1, 1, 1, 1), mode="reflect"), kernel, groups=channels)
    # Cut off, not rounded, to whole numbers: so does the original.
    coded = as_compressed((((blurred + 1) / 2).clamp(0, 1) * 255).to(torch.uint8).permute(0, 2, 3, 1).numpy(), crf)
    restored = torch.from_numpy(coded).permute(0, 3, 1, 2).to(pixels.dtype) / 127.5 - 1
    return restored.view(prompts, num_frames, channels, height, width).transpose(1, 2).contiguous()
