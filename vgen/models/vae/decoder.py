"""The decoder of the causal VAE: latents -> pixels, optionally conditioned on a timestep."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from einops import rearrange
from torch import Tensor, nn

from vgen.errors import RequestError
from vgen.models.layers import ModuleListOf, PixelNorm, TimestepEmbedder
from vgen.models.vae.blocks import Generators, MidBlock, UpBlock, modulation
from vgen.models.vae.causal_conv import CausalConv3d
from vgen.models.vae.decoding_steps import decoding_steps, stages_of
from vgen.models.vae.resolution import check_lengths, resolution_stride
from vgen.models.vae.streaming import FrameStream, run_in_pieces


class Decoder(nn.Module):
    """One convolution, the middle, stages of rising resolution, then patches back to pixels.

    All tuples are given from high to low resolution, as configs have them, and used in the other order.

    Args:
        latent_channels: of the latents.
        out_channels: of the pixels.
        block_out_channels: width of each stage (before division by its `upsample_factor`).
        spatio_temporal_scaling: whether each stage raises the resolution.
        upsample_type: how each stage raises it: a name of vae_blocks.STRIDES.
        layers_per_block: residual blocks of each stage and, last, of the middle.
        patch_size: pixels of a patch's side.
        patch_size_t: frames of a patch.
        eps: of shortcut norms.
        causal: see CausalConv3d.
        inject_noise: by stage and, last, for the middle.
        timestep_conditioning: take a timestep.
        upsample_residual: see vae_blocks.Upsampler.
        upsample_factor: see vae_blocks.Upsampler.
    """

    def __init__(
        self,
        latent_channels: int,
        out_channels: int,
        block_out_channels: tuple[int, ...],
        spatio_temporal_scaling: tuple[bool, ...],
        upsample_type: tuple[str, ...],
        layers_per_block: tuple[int, ...],
        patch_size: int,
        patch_size_t: int,
        eps: float,
        causal: bool,
        inject_noise: tuple[bool, ...],
        timestep_conditioning: bool,
        upsample_residual: tuple[bool, ...],
        upsample_factor: tuple[int, ...],
    ) -> None:
        super().__init__()
        stages = len(block_out_channels)
        check_lengths(
            stages,
            "decoder_block_out_channels",
            decoder_spatio_temporal_scaling=spatio_temporal_scaling,
            decoder_upsample_type=upsample_type,
            upsample_residual=upsample_residual,
            upsample_factor=upsample_factor,
        )
        check_lengths(
            stages + 1,
            "decoder_block_out_channels",
            decoder_layers_per_block=layers_per_block,
            decoder_inject_noise=inject_noise,
        )
        self.patch = (patch_size_t, patch_size, patch_size)
        width = block_out_channels[-1]
        self.conv_in = CausalConv3d(latent_channels, width, causal=causal)
        self.mid_block = MidBlock(width, layers_per_block[-1], eps, causal, inject_noise[-1], timestep_conditioning)
        self.up_blocks: ModuleListOf[UpBlock] = ModuleListOf()
        for i in reversed(range(stages)):
            factor = upsample_factor[i]
            if factor > 1 and block_out_channels[i] != width:
                raise RequestError(
                    f"decoder_block_out_channels: entry {i} is {block_out_channels[i]}, but a stage with "
                    f"upsample_factor={factor} has to meet the {width} channels that come in; use {width}."
                )
            wide_in, wide_out = width // factor, block_out_channels[i] // factor
            stride = (
                resolution_stride("decoder_upsample_type", upsample_type[i]) if spatio_temporal_scaling[i] else None
            )
            self.up_blocks.append(
                UpBlock(
                    wide_in,
                    wide_out,
                    layers_per_block[i],
                    eps,
                    causal,
                    inject_noise[i],
                    timestep_conditioning,
                    stride,
                    upsample_residual[i],
                    factor,
                )
            )
            width = wide_out
        self.norm_out = PixelNorm()
        self.conv_out = CausalConv3d(width, out_channels * patch_size_t * patch_size**2, causal=causal)
        self.time_embedder = self.scale_shift_table = self.timestep_scale_multiplier = None
        if timestep_conditioning:
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
        """Decode a clip piece by piece; the frames are those of decoding it whole, some given out later.

        Args:
            latents, timesteps, generator: see `forward`.
            numbers: of the largest tensor that are worked on at a time, see decoding_steps.piece_on.
        Returns:
            [B, 3, F, H, W] each; some may have no frames.
        """
        steps = decoding_steps(self, self._scaled(timesteps, latents.shape[0]), generator)
        return run_in_pieces(list(stages_of(steps, latents, numbers)), [latents])

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
