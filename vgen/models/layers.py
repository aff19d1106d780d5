"""Small layers that both models use: norms, time embeddings, text projection, feed-forward."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vgen import ops
from vgen.errors import RequestError
from vgen.models.fusing import bare, plain

TIME_CHANNELS = 256
"""Width of the sinusoidal embedding of a timestep."""


def sinusoidal_embedding(timesteps: Tensor, channels: int = TIME_CHANNELS, max_period: float = 10000.0) -> Tensor:
    """Cosines, then sines, of `timesteps` at `channels` / 2 geometrically spaced frequencies.

    Args:
        timesteps: [N], any real numbers.
        channels: even width of the result.
        max_period: the slowest frequency is about 1 / max_period.
    Returns:
        [N, channels], float32.
    """
    half = channels // 2
    exponent = torch.arange(half, dtype=torch.float32, device=timesteps.device) * (-math.log(max_period) / half)
    angles = timesteps.float()[:, None] * exponent.exp()[None]
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimestepMLP(nn.Module):
    """Two linear layers with a SiLU between them."""

    def __init__(self, in_features: int, hidden_size: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_features, hidden_size)
        self.linear_2 = nn.Linear(hidden_size, hidden_size)

    def forward(self, embedding: Tensor) -> Tensor:
        """[N, in_features] -> [N, hidden_size]."""
        return self.linear_2(F.silu(self.linear_1(embedding)))


class TimestepEmbedder(nn.Module):
    """Timesteps -> sinusoids -> MLP."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.timestep_embedder = TimestepMLP(TIME_CHANNELS, hidden_size)

    def forward(self, timesteps: Tensor, dtype: torch.dtype) -> Tensor:
        """[N] -> [N, hidden_size] of `dtype`."""
        return self.timestep_embedder(sinusoidal_embedding(timesteps).to(dtype))


class AdaLayerNormSingle(nn.Module):
    """One modulation network for all blocks (adaLN-single): timesteps -> six vectors of the hidden size.

    Source: PixArt-alpha (Chen et al. 2023), section 2.3.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.emb = TimestepEmbedder(hidden_size)
        self.linear = nn.Linear(hidden_size, 6 * hidden_size)

    def forward(self, timesteps: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """[N] -> ([N, 6 * hidden_size] for the blocks, [N, hidden_size] for the last norm)."""
        embedded = self.emb(timesteps, dtype)
        return self.linear(F.silu(embedded)), embedded


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis, computed in float32; without weights unless `affine`."""

    def __init__(self, hidden_size: int, eps: float, affine: bool = False) -> None:
        super().__init__()
        self.hidden_size, self.eps = hidden_size, eps
        self.weight = nn.Parameter(torch.ones(hidden_size)) if affine else None

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[..., D] -> [..., D], dtype of the input."""
        return F.rms_norm(hidden_states, (self.hidden_size,), self.weight, self.eps)

    def modulated(
        self, hidden_states: Tensor, branch: Tensor | None, shift: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        """hidden_states + branch, and its norm * (1 + scale) + shift; see vgen.ops.residual_norm_modulate."""
        if self.weight is None or plain(self):
            return ops.residual_norm_modulate(hidden_states, branch, None, self.weight, shift, scale, self.eps)
        hidden_states = hidden_states if branch is None else hidden_states + branch
        return hidden_states, torch.addcmul(shift, self(hidden_states), 1 + scale)


class PixelNorm(nn.Module):
    """Root-mean-square norm over the channels of every single position of [B, C, F, H, W]; no weights.

    It pools over nothing but channels, so a causal network stays causal.
    """

    def __init__(self, eps: float = 1e-8) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, C, ...] -> [B, C, ...], dtype of the input; the mean is taken in float32."""
        return ops.pixel_norm(hidden_states, self.eps)


class ChannelLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels of [B, C, F, H, W]."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, C, ...] -> [B, C, ...]."""
        return super().forward(hidden_states.movedim(1, -1)).movedim(-1, 1)


class TextProjection(nn.Module):
    """Text features -> hidden size: linear, tanh-GELU, linear."""

    def __init__(self, text_size: int, hidden_size: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(text_size, hidden_size)
        self.linear_2 = nn.Linear(hidden_size, hidden_size)

    def forward(self, text: Tensor) -> Tensor:
        """[B, L, text_size] -> [B, L, hidden_size]."""
        return self.linear_2(F.gelu(self.linear_1(text), approximate="tanh"))


class GELUProjection(nn.Module):
    """Linear followed by GELU."""

    def __init__(self, in_features: int, out_features: int, approximate: str) -> None:
        super().__init__()
        self.proj = nn.Linear(in_features, out_features)
        self.approximate = approximate

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        proj = bare(self.proj)
        if type(proj) is nn.Linear and plain(proj):
            return ops.linear_gelu(hidden_states, proj.weight, proj.bias, self.approximate)
        return F.gelu(self.proj(hidden_states), approximate=self.approximate)  # an adapter or a quantised layer


class FeedForward(nn.Module):
    """Linear to four times the width, GELU, linear back."""

    ACTIVATIONS: ClassVar[dict[str, str]] = {"gelu-approximate": "tanh", "gelu": "none"}

    def __init__(self, hidden_size: int, activation_fn: str = "gelu-approximate") -> None:
        super().__init__()
        if activation_fn not in self.ACTIVATIONS:
            known = ", ".join(self.ACTIVATIONS)
            raise RequestError(f"activation_fn={activation_fn!r} is not known: use one of {known}.")
        widen = GELUProjection(hidden_size, 4 * hidden_size, self.ACTIVATIONS[activation_fn])
        self.net = nn.ModuleList([widen, nn.Dropout(0.0), nn.Linear(4 * hidden_size, hidden_size)])

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        for layer in self.net:
            hidden_states = layer(hidden_states)
        return hidden_states


if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Generic, Self, overload

    Held = TypeVar("Held", bound=nn.Module)

    class ModuleListOf(nn.ModuleList, Generic[Held]):
        """What nn.ModuleList does, with the class of its members."""

        def __init__(self, modules: Iterable[Held] | None = None) -> None: ...
        def __iter__(self) -> Iterator[Held]: ...
        @overload
        def __getitem__(self, idx: slice) -> Self: ...
        @overload
        def __getitem__(self, idx: int) -> Held: ...
        def __getitem__(self, idx: int | slice) -> Held | Self: ...
else:
    ModuleListOf = nn.ModuleList
