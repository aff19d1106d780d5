"""CausalVideoVAE: video <-> latents, one latent frame for the first frame and one for every later group.

Config keys and tensor names are those of diffusers' AutoencoderKLLTXVideo, so public LTX-Video weights of all three
generations (0.9.0, 0.9.1, 0.9.5 and later) load as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import FromOriginalModelMixin
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from vgen.errors import ShapeError
from vgen.models.diffusers_compat import OptionalConfigKeys, register_class, register_single_file
from vgen.models.vae.blocks import STRIDES, Generators, ResnetBlock
from vgen.models.vae.decoder import Decoder
from vgen.models.vae.encoder import Encoder, down_stages
from vgen.models.vae.tiling import TiledCoding
from vgen.models.weights_io import LocalWeights
from vgen.types import Strides, VideoShape

_CONV_BLOCKS = ("LTXVideoDownBlock3D",) * 4


class LatentDistribution:
    """Gaussian with independent components.

    Args:
        parameters: [B, 2 * C, f, h, w], means, then log-variances (clamped to [-30, 20]).
    """

    def __init__(self, parameters: Tensor) -> None:
        self.parameters = parameters
        self.mean, logvar = parameters.chunk(2, dim=1)
        self.logvar = logvar.clamp(-30.0, 20.0)

    @property
    def std(self) -> Tensor:
        """[B, C, f, h, w], standard deviation."""
        return torch.exp(0.5 * self.logvar)

    @property
    def var(self) -> Tensor:
        """[B, C, f, h, w], variance."""
        return torch.exp(self.logvar)

    def sample(self, generator: torch.Generator | list[torch.Generator] | None = None) -> Tensor:
        """[B, C, f, h, w], one draw; a list of generators gives each sample its own."""
        noise = randn_tensor(self.mean.shape, generator, self.mean.device, self.mean.dtype)
        return self.mean + self.std * noise

    def mode(self) -> Tensor:
        """[B, C, f, h, w], the most likely latents."""
        return self.mean

    def kl(self) -> Tensor:
        """[B], divergence from the standard normal, summed over all components of a sample."""
        terms = self.mean.square() + self.var - 1.0 - self.logvar
        return 0.5 * terms.flatten(1).sum(dim=1)


@dataclass
class DecoderOutput(BaseOutput):
    """What `decode` returns: `sample` [B, 3, F, H, W], about [-1, 1]."""

    sample: Tensor


class CausalVideoVAE(OptionalConfigKeys, TiledCoding, LocalWeights, ModelMixin, ConfigMixin, FromOriginalModelMixin):
    """Causal 3-D variational autoencoder.

    Tuples are given from high to low resolution; the decoder uses them in the other order.

    Args:
        in_channels, out_channels: of the pixels.
        latent_channels: of the latents.
        block_out_channels: width of each stage (the kind with space to depth has one more: the last stage's output).
        down_block_types: kind of each stage: names of encoder.CONV_BLOCK, SPACE_TO_DEPTH_BLOCK.
        spatio_temporal_scaling: whether each stage reduces the resolution.
        layers_per_block: residual blocks of each stage; the last entry, which may be the last stage's, of the middle.
        downsample_type: how each stage reduces (only the kind with space to depth has a choice).
        decoder_block_out_channels: width of each stage (before division by its `upsample_factor`).
        decoder_spatio_temporal_scaling: whether each stage raises the resolution.
        decoder_upsample_type: how each stage raises it: names of blocks.STRIDES; None: "spatiotemporal" everywhere. Not
            written to a config where None.
        decoder_layers_per_block, decoder_inject_noise: of each stage and, last, of the middle; see blocks.ResnetBlock.
        upsample_residual, upsample_factor: see blocks.Upsampler.
        timestep_conditioning: the decoder takes a timestep.
        patch_size, patch_size_t: pixels and frames of a patch.
        resnet_norm_eps: of shortcut norms.
        scaling_factor: latents are multiplied by it when normalised.
        encoder_causal, decoder_causal: whether each never looks ahead.
        spatial_compression_ratio, temporal_compression_ratio: pixels and frames of a latent, None to compute them.
    """

    spread: Any = None
    """How several processes share the work, see vgen.engine.processes.vae_parallel; None: this one does all of it."""
    _supports_gradient_checkpointing = True
    _optional_config_keys: ClassVar[dict[str, Any]] = {"decoder_upsample_type": None}

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        latent_channels: int = 128,
        block_out_channels: tuple[int, ...] = (128, 256, 512, 512),
        down_block_types: tuple[str, ...] = _CONV_BLOCKS,
        decoder_block_out_channels: tuple[int, ...] = (128, 256, 512, 512),
        layers_per_block: tuple[int, ...] = (4, 3, 3, 3, 4),
        decoder_layers_per_block: tuple[int, ...] = (4, 3, 3, 3, 4),
        spatio_temporal_scaling: tuple[bool, ...] = (True, True, True, False),
        decoder_spatio_temporal_scaling: tuple[bool, ...] = (True, True, True, False),
        decoder_inject_noise: tuple[bool, ...] = (False, False, False, False, False),
        downsample_type: tuple[str, ...] = ("conv", "conv", "conv", "conv"),
        upsample_residual: tuple[bool, ...] = (False, False, False, False),
        upsample_factor: tuple[int, ...] = (1, 1, 1, 1),
        timestep_conditioning: bool = False,
        patch_size: int = 4,
        patch_size_t: int = 1,
        resnet_norm_eps: float = 1e-6,
        scaling_factor: float = 1.0,
        encoder_causal: bool = True,
        decoder_causal: bool = False,
        spatial_compression_ratio: int | None = None,
        temporal_compression_ratio: int | None = None,
        decoder_upsample_type: tuple[str, ...] | None = None,
    ) -> None:
        super().__init__()
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)
        self.register_buffer("latents_mean", torch.zeros(latent_channels), persistent=True)
        self.register_buffer("latents_std", torch.ones(latent_channels), persistent=True)
        self.strides = self._strides()
        self.spatial_compression_ratio = spatial_compression_ratio or self.strides.height
        self.temporal_compression_ratio = temporal_compression_ratio or self.strides.temporal
        self._init_tiling()

    def _strides(self) -> Strides:
        config, stages = self.config, down_stages(self.config)
        reductions = [(2, 2, 2) if kind == "conv" else STRIDES[kind] for _, _, kind, _ in stages if kind is not None]
        frames, rows, columns = (prod(axis) for axis in zip((1, 1, 1), *reductions, strict=True))
        side = config.patch_size
        return Strides(frames * config.patch_size_t, rows * side, columns * side)

    @apply_forward_hook
    def encode(self, video: Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple[LatentDistribution]:
        """Encode pixels.

        Args:
            video: [B, 3, F, H, W] in [-1, 1]; F = 1 is an image.
            return_dict: False returns a tuple.
        Returns:
            `latent_dist`, a LatentDistribution over [B, C, f, h, w]; not normalised.
        Raises:
            ShapeError: sizes that do not fit the strides.
        """
        if video.ndim != 5:
            raise ShapeError(f"video has shape {tuple(video.shape)}: it must be [B, C, F, H, W], F = 1 for an image.")
        VideoShape(*video.shape[2:]).check(self.strides)
        if self.use_slicing and video.shape[0] > 1:
            parameters = torch.cat([self._encode(sample) for sample in video.split(1)])
        else:
            parameters = self._encode(video)
        posterior = LatentDistribution(parameters)
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    @apply_forward_hook
    def decode(
        self,
        latents: Tensor,
        temb: Tensor | None = None,
        return_dict: bool = True,
        generator: Generators = None,
    ) -> DecoderOutput | tuple[Tensor]:
        """Decode latents.

        Args:
            latents: [B, C, f, h, w], not normalised (see `denormalize`).
            temb: [B] or one value, decoding timestep in [0, 1]; only for a timestep-conditioned decoder.
            return_dict: False returns a tuple.
            generator: draws the noise that the 0.9.1 decoder injects; a list gives each sample its own.
        Returns:
            `sample`, [B, 3, F, H, W].
        Raises:
            ShapeError: latents of another rank, or not one generator for each.
        """
        self._check_latents(latents, generator)
        batch = latents.shape[0]
        if self.use_slicing and batch > 1:
            sample = torch.cat([self._decode(*piece) for piece in _slices(latents, temb, generator)])
        else:
            sample = self._decode(latents, temb, generator)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    @apply_forward_hook
    def decode_in_pieces(
        self, latents: Tensor, temb: Tensor | None = None, generator: Generators = None
    ) -> Iterator[Tensor]:
        """Decode a clip in pieces along time: together the frames of `decode`, without ever holding them all.

        A decoder that looks ahead gives the first frames out late.

        Args:
            latents, temb, generator: as for `decode`.
        Returns:
            [B, 3, F, H, W] each; one piece where the clip is small or the pictures are coded in tiles.
        """
        self._check_latents(latents, generator)
        return self._decoded_pieces(latents, temb, generator)

    def forward(
        self,
        sample: Tensor,
        temb: Tensor | None = None,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: Generators = None,
    ) -> DecoderOutput | tuple[Tensor]:
        """Encode and decode: [B, 3, F, H, W] -> [B, 3, F, H, W].

        Args:
            sample: pixels in [-1, 1].
            temb: see `decode`.
            sample_posterior: draw the latents instead of taking the mean.
            return_dict: False returns a tuple.
            generator: draws the latents, then the injected noise.
        """
        posterior = self.encode(sample).latent_dist
        latents = posterior.sample(generator) if sample_posterior else posterior.mode()
        return self.decode(latents, temb, return_dict=return_dict, generator=generator)

    def _check_latents(self, latents: Tensor, generator: Generators) -> None:
        if latents.ndim != 5:
            raise ShapeError(
                f"latents have shape {tuple(latents.shape)}: they must be [B, C, F, H, W], F = 1 for an image."
            )
        batch = latents.shape[0]
        if isinstance(generator, list) and len(generator) != batch:
            raise ShapeError(f"generator: {len(generator)} generators for {batch} latents: give {batch}, or one.")

    def normalize(self, latents: Tensor) -> Tensor:
        """[B, C, f, h, w] of the encoder -> about zero mean and unit variance, as the transformer sees them."""
        mean, std = self._statistics(latents)
        return (latents - mean) * self.config.scaling_factor / std

    def denormalize(self, latents: Tensor) -> Tensor:
        """The inverse of `normalize`: [B, C, f, h, w] -> what `decode` takes."""
        mean, std = self._statistics(latents)
        return latents * std / self.config.scaling_factor + mean

    def _statistics(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        shape = (1, -1, 1, 1, 1)
        mean, std = (buffer.view(shape).to(latents) for buffer in (self.latents_mean, self.latents_std))
        return mean, std

    def enable_slicing(self) -> None:
        """Encode and decode one sample of a batch at a time."""
        self.use_slicing = True

    def disable_slicing(self) -> None:
        """Encode and decode whole batches."""
        self.use_slicing = False

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Weights to train from scratch: He-normal convolutions; every residual block starts as its shortcut.

        Args:
            generator: makes the draw reproducible.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                fan_in = module.weight[0].numel()
                module.weight.normal_(0.0, fan_in**-0.5, generator=generator)
                assert module.bias is not None
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                module.weight.normal_(0.0, 0.02, generator=generator)
                nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, ResnetBlock):
                nn.init.zeros_(module.conv2.conv.weight)
                if module.scale_shift_table is not None:
                    nn.init.zeros_(module.scale_shift_table)


def _slices(
    latents: Tensor, temb: Tensor | None, generator: Generators
) -> list[tuple[Tensor, Tensor | None, Generators]]:
    """One (latents, temb, generator) a sample."""
    batch = latents.shape[0]
    timesteps = [None] * batch if temb is None else list(temb.flatten().expand(batch).split(1))
    generators = [[source] for source in generator] if isinstance(generator, list) else [generator] * batch
    return list(zip(latents.split(1), timesteps, generators, strict=True))


register_class(CausalVideoVAE)
register_single_file(CausalVideoVAE, "AutoencoderKLLTXVideo")
