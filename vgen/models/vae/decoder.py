"""The decoder of the causal VAE: latents -> pixels, optionally conditioned on a timestep.

It can be cut into single blocks, so that a clip is decoded in pieces of about one size at every resolution. Where a
clip is small, in the first stages, all of it is one piece. Where it is large, few frames are: no stage then holds a
clip of its resolution, and still no piece is too small to be worth a call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from math import prod
from typing import Any, Final, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from vgen.errors import RequestError
from vgen.models.layers import ModuleListOf, PixelNorm, TimestepEmbedder
from vgen.models.vae.blocks import (
    Generators,
    MidBlock,
    ResnetBlock,
    UpBlock,
    check_lengths,
    modulation,
    resolution_stride,
)
from vgen.models.vae.causal_conv import CausalConv3d
from vgen.models.vae.streaming import FrameStream, StreamStage, run_in_pieces

_ON_CPU: Final = 2**21
_ELSEWHERE: Final = 2**25


def piece_on(device: str) -> int:
    """Numbers of the largest tensor that are worked on at a time, by the type of device.

    On a CPU measured: smaller pieces are slower, larger ones no faster. Elsewhere chosen so that a call has
    enough to do for any GPU; not measured.
    """
    return _ON_CPU if device == "cpu" else _ELSEWHERE


class Step(NamedTuple):
    """One block of a decoder.

    Attributes:
        run: [B, C, F, H, W] and the stream's memory to the same of the next block.
        width: numbers of its largest tensor for each position of what comes in.
        growth: frames, rows and columns that a position of what comes in becomes.
    """

    run: Callable[[Tensor, FrameStream | None], Tensor]
    width: int
    growth: tuple[int, int, int] = (1, 1, 1)


class Decoder(nn.Module):
    """One convolution, the middle, stages of rising resolution, then patches back to pixels.

    Args:
        config: of CausalVideoVAE.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        widths, layers = config.decoder_block_out_channels, config.decoder_layers_per_block
        noise = config.decoder_inject_noise
        eps, causal, conditioned = config.resnet_norm_eps, config.decoder_causal, config.timestep_conditioning
        kinds = config.decoder_upsample_type
        by_stage = ["decoder_spatio_temporal_scaling", "upsample_residual", "upsample_factor"]
        by_stage += [] if kinds is None else ["decoder_upsample_type"]
        check_lengths(config, len(widths), "decoder_block_out_channels", *by_stage)
        with_middle = ("decoder_layers_per_block", "decoder_inject_noise")
        check_lengths(config, len(widths) + 1, "decoder_block_out_channels", *with_middle)
        self.patch = (config.patch_size_t, config.patch_size, config.patch_size)
        width = widths[-1]
        self.conv_in = CausalConv3d(config.latent_channels, width, causal=causal)
        self.mid_block = MidBlock(width, layers[-1], eps, causal, noise[-1], conditioned)
        self.up_blocks: ModuleListOf[UpBlock] = ModuleListOf()
        for i in reversed(range(len(widths))):
            factor, residual = config.upsample_factor[i], config.upsample_residual[i]
            if factor > 1 and widths[i] != width:
                raise RequestError(
                    f"decoder_block_out_channels: entry {i} is {widths[i]}, but a stage with "
                    f"upsample_factor={factor} has to meet the {width} channels that come in; use {width}."
                )
            stride = None
            if config.decoder_spatio_temporal_scaling[i]:
                kind = "spatiotemporal" if kinds is None else kinds[i]
                stride = resolution_stride("decoder_upsample_type", kind)
            wide_in, width = width // factor, widths[i] // factor
            self.up_blocks.append(
                UpBlock(wide_in, width, layers[i], eps, causal, noise[i], conditioned, stride, residual, factor)
            )
        self.norm_out = PixelNorm()
        self.conv_out = CausalConv3d(width, config.out_channels * prod(self.patch), causal=causal)
        self.time_embedder = self.scale_shift_table = self.timestep_scale_multiplier = None
        if conditioned:
            self.timestep_scale_multiplier = nn.Parameter(torch.tensor(1000.0))
            self.time_embedder = TimestepEmbedder(2 * width)
            self.scale_shift_table = nn.Parameter(torch.randn(2, width) / width**0.5)

    def forward(self, latents: Tensor, timesteps: Tensor | None = None, generator: Generators = None) -> Tensor:
        """Decode.

        Args:
            latents: [B, C, f, h, w], as the encoder made them (not normalised).
            timesteps: [B] in [0, 1]; needed with timestep conditioning, else ignored.
            generator: where injected noise is drawn from.
        Returns:
            [B, 3, F, H, W].
        Raises:
            RequestError: the decoder takes a timestep and none was given.
        """
        timesteps = self._scaled(timesteps, latents.shape[0])
        hidden_states = self.mid_block(self.from_latents(latents), timesteps, generator)
        for block in self.up_blocks:
            hidden_states = block(hidden_states, timesteps, generator)
        return self.to_pixels(timesteps, hidden_states)

    def in_pieces(
        self, latents: Tensor, timesteps: Tensor | None, generator: Generators, numbers: int
    ) -> Iterator[Tensor]:
        """Decode a clip piece by piece; the frames are those of decoding it whole, some returned later.

        Args:
            latents, timesteps, generator: see `forward`.
            numbers: of the largest tensor that are worked on at a time, see `piece_on`.
        Returns:
            [B, 3, F, H, W] each; some may have no frames.
        """
        stages, positions = [], latents.shape[0] * latents.shape[3] * latents.shape[4]
        for step in self._steps(self._scaled(timesteps, latents.shape[0]), generator):
            stages.append(StreamStage(step.run, max(1, numbers // (positions * step.width))))
            positions *= step.growth[1] * step.growth[2]
        return run_in_pieces(stages, [latents])

    def numbers_per_frame(self, latents: Tensor) -> int:
        """Numbers of the largest tensor for each frame of the finished clip.

        Args:
            latents: [B, C, f, h, w], the whole pictures, though each of several processes may work on a part of them.
        """
        positions, stride, largest = latents.shape[0] * latents.shape[3] * latents.shape[4], 1, 0
        for step in self._steps(None, None):
            largest = max(largest, positions * step.width // stride)
            positions *= step.growth[1] * step.growth[2]
            stride *= step.growth[0]
        return largest

    def _steps(self, timesteps: Tensor | None, generator: Generators) -> Iterator[Step]:
        """The blocks in order; `timesteps` [B] are scaled."""
        conv = self.conv_in.conv
        yield Step(self.from_latents, max(conv.in_channels, conv.out_channels))
        for block in (self.mid_block, *self.up_blocks):
            yield from _steps_of(block, timesteps, generator)
        conv = self.conv_out.conv
        yield Step(partial(self.to_pixels, timesteps), max(conv.in_channels, conv.out_channels))

    def from_latents(self, latents: Tensor, stream: FrameStream | None = None) -> Tensor:
        """The first convolution: [B, C, f, h, w] -> [B, D, f, h, w]."""
        return self.conv_in(latents, stream=stream)

    def to_pixels(self, timesteps: Tensor | None, hidden_states: Tensor, stream: FrameStream | None = None) -> Tensor:
        """The last convolution, and patches to pixels: [B, D, F, H, W] -> [B, 3, F, H, W]."""
        shift = scale = None
        if self.time_embedder is not None and self.scale_shift_table is not None:
            embedding = self.time_embedder(timesteps, hidden_states.dtype)
            shift, scale = modulation(embedding, self.scale_shift_table)
        hidden_states = self.conv_out.after_norm(hidden_states, self.norm_out.eps, shift, scale, stream)
        frames, rows, columns = self.patch
        return rearrange(
            hidden_states, "b (c pt pw ph) f h w -> b c (f pt) (h ph) (w pw)", pt=frames, ph=rows, pw=columns
        )

    def _scaled(self, timesteps: Tensor | None, batch: int) -> Tensor | None:
        if self.timestep_scale_multiplier is None:
            return None
        if timesteps is None:
            raise RequestError("temb=None does not fit a timestep-conditioned decoder: give a tensor [B], e.g. 0.05.")
        timesteps = timesteps.flatten()
        if timesteps.numel() not in (1, batch):
            raise RequestError(
                f"temb has {timesteps.numel()} values for {batch} latents: give one for all or one for each ({batch})."
            )
        return timesteps.expand(batch) * self.timestep_scale_multiplier


def _steps_of(block: MidBlock | UpBlock, timesteps: Tensor | None, generator: Generators) -> Iterator[Step]:
    """The steps of a stage; its embedding of the timesteps is computed once for all pieces."""
    if isinstance(block, UpBlock):
        if (widen := block.conv_in) is not None:
            width = max(widen.conv1.conv.in_channels, widen.conv1.conv.out_channels)
            yield Step(lambda hidden_states, stream: widen(hidden_states, stream=stream), width)
        for upsampler in block.upsamplers or ():
            yield Step(upsampler, upsampler.conv.conv.out_channels, upsampler.stride)

    @cache
    def embedding(dtype: torch.dtype) -> Tensor | None:
        return None if block.time_embedder is None else block.time_embedder(timesteps, dtype)

    def run(resnet: ResnetBlock, hidden_states: Tensor, stream: FrameStream | None) -> Tensor:
        return block.run_resnets([resnet], hidden_states, embedding(hidden_states.dtype), generator, stream)

    for resnet in block.resnets:
        yield Step(partial(run, resnet), resnet.conv1.conv.out_channels)
