"""The encoder of the causal VAE: pixels -> mean and log-variance of the latents."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from math import prod
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from vgen.errors import RequestError
from vgen.models.layers import PixelNorm
from vgen.models.vae.blocks import DownBlock, MidBlock, check_lengths
from vgen.models.vae.causal_conv import CausalConv3d
from vgen.models.vae.streaming import FrameStream, StreamStage, run_in_pieces

CONV_BLOCK, SPACE_TO_DEPTH_BLOCK = "LTXVideoDownBlock3D", "LTXVideo095DownBlock3D"
"""The two kinds of `down_block_types`; names as public configs have them."""


class Encoder(nn.Module):
    """Patches, stages of falling resolution, then one convolution to latent_channels + 1 channels.

    The extra channel is a log-variance that all latent channels share.

    Args:
        config: of CausalVideoVAE.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        stages = down_stages(config)
        check_lengths(config, len(stages), "block_out_channels", "layers_per_block")
        eps, causal, layers = config.resnet_norm_eps, config.encoder_causal, config.layers_per_block
        self.patch = (config.patch_size_t, config.patch_size, config.patch_size)
        width = config.block_out_channels[0]
        self.conv_in = CausalConv3d(config.in_channels * prod(self.patch), width, causal=causal)
        self.down_blocks = nn.ModuleList(
            DownBlock(wide_in, wide_out, layers[i], eps, causal, kind, widen)
            for i, (wide_in, wide_out, kind, widen) in enumerate(stages)
        )
        width = stages[-1][1]
        self.mid_block = MidBlock(width, layers[-1], eps, causal)
        self.norm_out = PixelNorm()
        self.conv_out = CausalConv3d(width, config.latent_channels + 1, causal=causal)

    def forward(self, video: Tensor) -> Tensor:
        """[B, C, F, H, W] -> [B, 2 * latent_channels, f, h, w]: means, then log-variances."""
        hidden_states = video
        for stage in self._stages():
            hidden_states = stage(hidden_states, None)
        return hidden_states

    def in_pieces(self, pieces: Iterable[Tensor], frames: int) -> Iterator[Tensor]:
        """Encode a clip piece by piece; the latents are those of encoding it whole.

        Args:
            pieces: [B, C, F, H, W], pixels cut along their frames, each but the last a multiple of the patch's frames.
            frames: how many frames are worked on at a time.
        Returns:
            [B, 2 * latent_channels, f, h, w] each; some may have no frames.
        """
        return run_in_pieces([StreamStage(stage, frames) for stage in self._stages()], pieces)

    def _stages(self) -> list[Callable[[Tensor, FrameStream | None], Tensor]]:
        return [self._from_pixels, *self.down_blocks, self._to_moments]

    def _from_pixels(self, video: Tensor, stream: FrameStream | None) -> Tensor:
        frames, rows, columns = self.patch
        # A column's index within the patch comes before a row's: the order that public weights were trained with.
        patches = rearrange(video, "b c (f pt) (h ph) (w pw) -> b (c pt pw ph) f h w", pt=frames, ph=rows, pw=columns)
        return self.conv_in(patches, stream=stream)

    def _to_moments(self, hidden_states: Tensor, stream: FrameStream | None) -> Tensor:
        hidden_states = self.mid_block(hidden_states, stream=stream)
        hidden_states = self.conv_out.after_norm(hidden_states, self.norm_out.eps, stream=stream)
        mean, logvar = hidden_states[:, :-1], hidden_states[:, -1:]
        return torch.cat([mean, logvar.expand_as(mean)], dim=1)


def down_stages(config: Any) -> list[tuple[int, int, str | None, bool]]:
    """(channels in, channels out, kind of reduction or None, whether a residual block widens) of every stage.

    Args:
        config: of CausalVideoVAE.
    Raises:
        RequestError: an unknown block type, or tuples of different lengths.
    """
    for kind in config.down_block_types:
        if kind not in (CONV_BLOCK, SPACE_TO_DEPTH_BLOCK):
            raise RequestError(f"down_block_types: {kind!r} is not known: use {CONV_BLOCK} or {SPACE_TO_DEPTH_BLOCK}.")
    widths = list(config.block_out_channels)
    if config.down_block_types[-1] == CONV_BLOCK:
        widths.append(widths[-1])
    fields = ("down_block_types", "spatio_temporal_scaling", "downsample_type")
    check_lengths(config, len(widths) - 1, "block_out_channels", *fields)
    stages = []
    for i, (wide_in, wide_out) in enumerate(pairwise(widths)):
        by_convolution = config.down_block_types[i] == CONV_BLOCK
        reduction = "conv" if by_convolution else config.downsample_type[i]
        stages.append((wide_in, wide_out, reduction if config.spatio_temporal_scaling[i] else None, by_convolution))
    return stages
