"""3-D rotary positions: the place of a token in seconds, pixel rows and pixel columns."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vgen.errors import ShapeError

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines, each [B or 1, N, D // 2], float32: one angle for each pair of channels."""


class RotaryPositions(nn.Module):
    """Angles for every token and every pair of channels.

    Coordinates are divided by `base_size`, mapped from [0, 1] to [-1, 1] and multiplied by frequencies
    theta^(k / (K - 1)) * pi / 2, K = hidden_size // 6. Time, row and column alternate from pair to pair. Channels that
    do not fill a group of six stay unrotated, in front.

    Args:
        hidden_size: channels of queries and keys before the split into heads; even.
        theta: largest frequency over the smallest.
        base_size: (seconds, pixel rows, pixel columns) mapped to 1.
        patch_size, patch_size_t: latents of a token along rows and columns, and along time.

    Source: rotary embedding, Su et al. 2021; the 3-D form is LTX-Video's (HaCohen et al. 2024).
    """

    def __init__(
        self,
        hidden_size: int,
        theta: float = 10000.0,
        base_size: tuple[float, float, float] = (20, 2048, 2048),
        patch_size: int = 1,
        patch_size_t: int = 1,
    ) -> None:
        super().__init__()
        if hidden_size % 2:
            raise ShapeError(
                f"num_attention_heads * attention_head_dim = {hidden_size} is odd: rotary positions turn pairs of "
                f"channels; use {hidden_size - 1} or {hidden_size + 1}."
            )
        self.hidden_size, self.theta, self.base_size = hidden_size, theta, tuple(base_size)
        self.patch = (patch_size_t, patch_size, patch_size)

    def forward(
        self,
        hidden_states: Tensor,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        interpolation_scale: tuple[float | Tensor, float | Tensor, float | Tensor] | Tensor | None = None,
        coordinates: Tensor | None = None,
    ) -> Rotation:
        """The rotation of every token.

        Args:
            hidden_states: any tensor; gives the device. (Not the number of tokens: it may be one part of several that
                are computed in parallel.)
            num_frames, height, width: latent size, N = num_frames * height * width; only without `coordinates`.
            interpolation_scale: seconds, rows and columns of one latent; only without `coordinates`. None leaves
                latent indices undivided, as public pipelines do.
            coordinates: [B or 1, 3, N], seconds, pixel rows, pixel columns.
        Returns:
            Cosines and sines, [B or 1, N, D // 2], float32.
        Raises:
            ShapeError: neither coordinates nor a latent size.
        """
        device = hidden_states.device
        if coordinates is None:
            positions = self._grid((num_frames, height, width), interpolation_scale, device)
        else:
            if coordinates.ndim != 3 or coordinates.shape[1] != 3:
                raise ShapeError(
                    f"video_coords has shape {tuple(coordinates.shape)}: it must be [batch, 3, tokens], 3 for "
                    "seconds, pixel rows and pixel columns."
                )
            parts = [coordinates[:, axis].float() / self.base_size[axis] for axis in range(3)]
            positions = torch.stack(parts, dim=-1)
        exponents = torch.linspace(0.0, 1.0, self.hidden_size // 6, device=device, dtype=torch.float32)
        frequencies = self.theta**exponents * math.pi / 2.0
        angles = (frequencies * (positions.unsqueeze(-1) * 2 - 1)).transpose(-1, -2).flatten(2)
        unrotated = self.hidden_size // 2 - angles.shape[-1]
        angles = torch.nn.functional.pad(angles, (unrotated, 0))
        return angles.cos(), angles.sin()

    def _grid(
        self,
        size: tuple[int | None, int | None, int | None],
        scale: tuple[float | Tensor, float | Tensor, float | Tensor] | Tensor | None,
        device: torch.device,
    ) -> Tensor:
        """[1, N, 3], positions of a regular grid of latents in units of `base_size`."""
        counts = [count for count in size if count is not None]
        if len(counts) < len(size):
            raise ShapeError("video_coords is None: then num_frames, height and width of the latents are needed.")
        axes = [torch.arange(count, dtype=torch.float32, device=device) for count in counts]
        if scale is not None:
            axes = [
                axis * scale[i] * self.patch[i] / self.base_size[i]  # in this order: angles are large, rounding shows
                for i, axis in enumerate(axes)
            ]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 2).unsqueeze(0)
