"""From a VAE trained on single images to one that starts well on clips.

Images train only part of a causal video VAE: every tap of a temporal kernel sees the same frame, so only their sum is
learned, and of the frames that an upsampler makes from one latent only the last is kept. Clips then start from noise in
all other places. `inflate` moves what was learned to where a clip needs it: each frame is coded like the image it is,
and decoded from the latest latent. What single images give stays the same.
"""

from __future__ import annotations

import torch

from vgen.models.vae.blocks import Upsampler
from vgen.models.vae.causal_conv import FramePaddedConv3d
from vgen.models.vae.video_vae import CausalVideoVAE


@torch.no_grad()
def inflate(vae: CausalVideoVAE) -> None:
    """Rearrange the weights of an image-trained VAE in place, for training on clips.

    Args:
        vae: trained on clips of one frame. Its reconstruction of single frames is unchanged up to rounding.
    """
    for module in vae.modules():
        if isinstance(module, FramePaddedConv3d):
            _gather_taps(module)
    for module in vae.modules():
        if isinstance(module, Upsampler) and module.stride[0] > 1:
            _repeat_frames(module)


def _gather_taps(conv: FramePaddedConv3d) -> None:
    """Put the sum of the temporal taps on the tap of the present frame."""
    present = conv.frames_before
    total = conv.weight.sum(dim=2)
    conv.weight.zero_()
    conv.weight[:, :, present] = total


def _repeat_frames(upsampler: Upsampler) -> None:
    """Make every frame that comes from one latent equal to the last, the one that images train."""
    # The fixed part of a residual upsampler takes other channels for other frames; the convolution makes up for it.
    frames, rows, columns = upsampler.stride
    conv = upsampler.conv.conv
    weight = conv.weight.unflatten(0, (-1, frames, rows * columns))
    weight[:, :-1] = weight[:, -1:].clone()
    if conv.bias is not None:
        bias = conv.bias.unflatten(0, (-1, frames, rows * columns))
        bias[:, :-1] = bias[:, -1:].clone()
    if not upsampler.residual:
        return
    middle = (conv.frames_before, conv.kernel_size[1] // 2, conv.kernel_size[2] // 2)
    carried = conv.in_channels // (frames * rows * columns)
    source = torch.arange(conv.in_channels).view(carried, frames, rows * columns)
    for output in range(weight.shape[0]):
        for frame in range(frames - 1):
            for place in range(rows * columns):
                taps = weight[output, frame, place, :, middle[0], middle[1], middle[2]]
                taps[source[output % carried, frames - 1, place]] += 1
                taps[source[output % carried, frame, place]] -= 1
