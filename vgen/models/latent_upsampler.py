"""LatentUpsampler: latents of a clip to latents of the same clip at twice the size, in space, in time or both.

Config keys and tensor names are those of diffusers' LTXLatentUpsamplerModel and of Lightricks' single files, so public
upsamplers of LTX-Video (0.9.7, 0.9.8; spatial and temporal) load as they are. It works on latents as the VAE's encoder
gives them, not on normalised ones.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from einops import rearrange
from safetensors.torch import load_file
from torch import Tensor, nn

from vgen.errors import CheckpointError, ShapeError
from vgen.hub.upsampler import UpsamplerFiles, single_file_config
from vgen.io.weights.single_file import tensor_faults
from vgen.models.diffusers_compat import register_class
from vgen.models.weights_io import LocalWeights
from vgen.types import Strides

_GROUPS = 32
"""Groups of every norm."""

_SHUFFLES = {
    (False, True): "b (c q r) h w -> b c (h q) (w r)",
    (True, False): "b (c p) f h w -> b c (f p) h w",
    (True, True): "b (c p q r) f h w -> b c (f p) (h q) (w r)",
}
"""From channels to positions, by (temporal, spatial); spatial alone works on single frames."""


class ResBlock(nn.Module):
    """Two convolutions with a norm each, around a shortcut; the last activation comes after the sum.

    Args:
        channels: in and out.
        dims: 2 for single frames, 3 for clips.
    """

    def __init__(self, channels: int, dims: int) -> None:
        super().__init__()
        self.conv1 = _conv(channels, channels, dims)
        self.norm1 = nn.GroupNorm(_GROUPS, channels)
        self.conv2 = _conv(channels, channels, dims)
        self.norm2 = nn.GroupNorm(_GROUPS, channels)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, C, ...] -> the same shape."""
        branch = nn.functional.silu(self.norm1(self.conv1(hidden_states)))
        return nn.functional.silu(self.norm2(self.conv2(branch)) + hidden_states)


class PixelShuffle(nn.Module):
    """Channels to positions, twice as many along each enlarged axis.

    Args:
        temporal: enlarge time.
        spatial: enlarge rows and columns.
    """

    def __init__(self, temporal: bool, spatial: bool) -> None:
        super().__init__()
        self.pattern = _SHUFFLES[temporal, spatial]

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, C * 2^k, ...] -> [B, C, ...] with the k enlarged axes at twice their length."""
        factors = {name: 2 for name in "pqr" if name in self.pattern.split(")")[0]}
        return rearrange(hidden_states, self.pattern, **factors)


class LatentUpsampler(LocalWeights, ModelMixin, ConfigMixin):
    """Enlarges latents: residual blocks, a convolution with pixel shuffle, residual blocks.

    Args:
        in_channels: of the latents, in and out.
        mid_channels: within; divides by 32.
        num_blocks_per_stage: residual blocks before, and as many after the enlargement.
        dims: 3 convolves clips, 2 single frames (spatial enlargement only).
        spatial_upsample: twice the rows and columns.
        temporal_upsample: 2f - 1 latent frames from f: the first stands for one frame and stays one.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 128,
        mid_channels: int = 512,
        num_blocks_per_stage: int = 4,
        dims: int = 3,
        spatial_upsample: bool = True,
        temporal_upsample: bool = False,
    ) -> None:
        super().__init__()
        _check_config(mid_channels, dims, spatial_upsample, temporal_upsample)
        self.scale = Strides(1 + bool(temporal_upsample), 1 + bool(spatial_upsample), 1 + bool(spatial_upsample))
        self.initial_conv = _conv(in_channels, mid_channels, dims)
        self.initial_norm = nn.GroupNorm(_GROUPS, mid_channels)
        self.res_blocks = nn.ModuleList([ResBlock(mid_channels, dims) for _ in range(num_blocks_per_stage)])
        factor = self.scale.temporal * self.scale.height * self.scale.width
        self.upsampler = nn.Sequential(
            _conv(mid_channels, factor * mid_channels, 3 if temporal_upsample else 2),
            PixelShuffle(bool(temporal_upsample), bool(spatial_upsample)),
        )
        self.post_upsample_res_blocks = nn.ModuleList(
            [ResBlock(mid_channels, dims) for _ in range(num_blocks_per_stage)]
        )
        self.final_conv = _conv(mid_channels, in_channels, dims)

    def forward(self, latents: Tensor) -> Tensor:
        """Enlarge.

        Args:
            latents: [B, C, f, h, w], not normalised.
        Returns:
            [B, C, f or 2f - 1, h or 2h, w or 2w].
        Raises:
            ShapeError: another rank, or other channels than it was trained with.
        """
        if latents.ndim != 5 or latents.shape[1] != self.config.in_channels:
            raise ShapeError(
                f"latents have shape {tuple(latents.shape)}: this upsampler takes "
                f"[B, {self.config.in_channels}, f, h, w]; use the one that was made for the model's VAE."
            )
        batch, by_frame = latents.shape[0], self.config.dims == 2
        hidden_states = _to_frames(latents) if by_frame else latents
        hidden_states = nn.functional.silu(self.initial_norm(self.initial_conv(hidden_states)))
        for block in self.res_blocks:
            hidden_states = block(hidden_states)
        hidden_states = self._enlarge(hidden_states)
        for block in self.post_upsample_res_blocks:
            hidden_states = block(hidden_states)
        hidden_states = self.final_conv(hidden_states)
        return _to_clips(hidden_states, batch) if by_frame else hidden_states

    def _enlarge(self, hidden_states: Tensor) -> Tensor:
        if self.config.temporal_upsample:
            return self.upsampler(hidden_states)[:, :, 1:]
        if self.config.dims == 2:
            return self.upsampler(hidden_states)
        return _to_clips(self.upsampler(_to_frames(hidden_states)), hidden_states.shape[0])

    @classmethod
    def from_single_file(
        cls,
        file: str | os.PathLike[str],
        *,
        torch_dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ) -> Self:
        """Load one of Lightricks' files: the configuration from its metadata, from its shapes where that is missing.

        Args:
            file: a safetensors file.
            torch_dtype: of the weights, None: as stored.
            device: the tensors are mapped straight there.
        Raises:
            CheckpointError: not a sound safetensors file, or tensors that are missing, too many or of another shape.
        """
        path = Path(file)
        return cls.from_files(UpsamplerFiles(path, single_file_config(path)), torch_dtype=torch_dtype, device=device)

    @classmethod
    def from_files(
        cls, files: UpsamplerFiles, *, torch_dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> Self:
        """Load what `find_upsampler` found, a single file or a folder.

        Args:
            files: checked.
            torch_dtype: of the weights, None: as stored.
            device: the tensors are mapped straight there.
        Raises:
            CheckpointError: tensors that are missing, too many or of another shape; names the first five.
        """
        with torch.device("meta"):
            model = cls(**files.config)
        tensors = {key: value for file in files.weights for key, value in load_file(file, device=str(device)).items()}
        expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        faults = tensor_faults(expected, {key: tuple(value.shape) for key, value in tensors.items()})
        if faults:
            raise CheckpointError(
                f"{files.path} is not a whole latent upsampler: its weights {faults}. Fetch it again."
            )
        if torch_dtype is not None:
            tensors = {key: value.to(torch_dtype) for key, value in tensors.items()}
        model.load_state_dict(tensors, assign=True)
        model.register_to_config(_name_or_path=str(files.path))
        return model.eval()


def _conv(in_channels: int, out_channels: int, dims: int) -> nn.Conv2d | nn.Conv3d:
    kind = nn.Conv2d if dims == 2 else nn.Conv3d
    return kind(in_channels, out_channels, kernel_size=3, padding=1)


def _to_frames(clips: Tensor) -> Tensor:
    return rearrange(clips, "b c f h w -> (b f) c h w")


def _to_clips(frames: Tensor, batch: int) -> Tensor:
    return rearrange(frames, "(b f) c h w -> b c f h w", b=batch)


def _check_config(mid_channels: int, dims: int, spatial: bool, temporal: bool) -> None:
    if dims not in (2, 3):
        raise ShapeError(f"dims={dims} is not known: use 3 for clips or 2 for single frames.")
    if not spatial and not temporal:
        raise ShapeError("spatial_upsample and temporal_upsample are both off: turn on one of them.")
    if temporal and dims == 2:
        raise ShapeError("temporal_upsample needs dims=3: with dims=2 every frame stands alone.")
    if mid_channels < _GROUPS or mid_channels % _GROUPS:
        raise ShapeError(f"mid_channels={mid_channels} must be a multiple of {_GROUPS}, the groups of its norms.")


register_class(LatentUpsampler)
