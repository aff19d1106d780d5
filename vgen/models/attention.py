"""Attention: one module for self- and cross-attention, and the one call that every backend stands behind."""

from __future__ import annotations

from typing import Any, ClassVar

from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import (
    AttentionBackendName,
    _AttentionBackendRegistry,
    dispatch_attention_fn,
)
from torch import Tensor, nn
from torch.nn import functional

from vgen.errors import RequestError
from vgen.models.rope import Rotation, rotate
from vgen.models.skip import BlockSkip, replace_rows


def _mask_for(backend: AttentionBackendName | None, mask: Tensor | None) -> Tensor | None:
    """The mask in the one shape that `backend` understands.

    A bool mask [B, L] suits xformers alone: others take it for [N, L], or refuse it. A bool mask [B, 1, 1, L] suits all
    but xformers, which would add it to the scores.
    """
    if mask is None or mask.ndim != 2:
        return mask
    if backend is None:
        backend, _ = _AttentionBackendRegistry.get_active_backend()
    return mask if backend == AttentionBackendName.XFORMERS else mask[:, None, None]


def attention_backends() -> list[str]:
    """Names of all attention backends that `VideoDiT.set_attention_backend` knows; not all need be installed."""
    return sorted(backend.value for backend in AttentionBackendName)


class AcrossHeadsNorm(nn.RMSNorm):
    """RMS norm whose weight follows the input's dtype: under autocast a mixed pair falls back to a slow path."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[..., D] -> [..., D], same dtype."""
        weight = self.weight.to(hidden_states.dtype)
        return functional.rms_norm(hidden_states, self.normalized_shape, weight, self.eps)


class VideoAttentionProcessor:
    """Projects, normalises, rotates, attends and projects back; diffusers' machinery sets the two class attributes."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self,
        attention: VideoAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotation: Rotation | None = None,
        skip: BlockSkip | None = None,
    ) -> Tensor:
        """See VideoAttention.forward; `skip`: samples whose attention is replaced, by mode (see types.SkipLayers)."""
        query, key, value = attention.project(hidden_states, encoder_hidden_states)
        query, key = attention.norm_q(query), attention.norm_k(key)
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        attended = dispatch_attention_fn(
            *(part.unflatten(2, (attention.heads, -1)) for part in (query, key, value)),
            attn_mask=_mask_for(self._attention_backend, attention_mask),
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        attended = attended.flatten(2, 3).to(query.dtype)
        if skip is not None:
            for mode, instead in (("attention_values", value), ("attention_skip", hidden_states)):
                if mode in skip:
                    attended = replace_rows(attended, instead.to(attended.dtype), skip[mode])
        for layer in attention.to_out:
            attended = layer(attended)
        return attended


class VideoAttention(nn.Module, AttentionModuleMixin):
    """Multi-head attention with an RMS norm of queries and keys across all heads.

    Args:
        hidden_size: channels in and out.
        num_heads: heads.
        head_dim: channels of a head.
        cross_attention_dim: channels of what is attended to; None is self-attention.
        bias: biases of the three input projections.
        out_bias: bias of the output projection.
        qk_norm: only "rms_norm_across_heads".
    """

    _default_processor_cls = VideoAttentionProcessor
    _available_processors: ClassVar[list[type]] = [VideoAttentionProcessor]

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        head_dim: int,
        cross_attention_dim: int | None = None,
        bias: bool = True,
        out_bias: bool = True,
        qk_norm: str = "rms_norm_across_heads",
    ) -> None:
        super().__init__()
        if qk_norm != "rms_norm_across_heads":
            raise RequestError(f"qk_norm={qk_norm!r} is not known: use 'rms_norm_across_heads'.")
        self.heads, self.use_bias = num_heads, bias
        self.inner_dim = num_heads * head_dim
        self.is_cross_attention = cross_attention_dim is not None
        self.cross_attention_dim = cross_attention_dim or hidden_size
        self.norm_q = AcrossHeadsNorm(self.inner_dim, eps=1e-5)
        self.norm_k = AcrossHeadsNorm(self.inner_dim, eps=1e-5)
        self.to_q = nn.Linear(hidden_size, self.inner_dim, bias=bias)
        self.to_k = nn.Linear(self.cross_attention_dim, self.inner_dim, bias=bias)
        self.to_v = nn.Linear(self.cross_attention_dim, self.inner_dim, bias=bias)
        self.to_out = nn.ModuleList([nn.Linear(self.inner_dim, hidden_size, bias=out_bias), nn.Dropout(0.0)])
        self.set_processor(VideoAttentionProcessor())

    def project(self, hidden_states: Tensor, encoder_hidden_states: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, [B, N, D] and twice [B, N or L, D]; in one matrix product where fused."""
        if not self.fused_projections:
            source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
            return self.to_q(hidden_states), self.to_k(source), self.to_v(source)
        if encoder_hidden_states is None:
            query, key, value = self.to_qkv(hidden_states).chunk(3, dim=-1)
            return query, key, value
        key, value = self.to_kv(encoder_hidden_states).chunk(2, dim=-1)
        return self.to_q(hidden_states), key, value

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotation: Rotation | None = None,
        **processor_arguments: Any,
    ) -> Tensor:
        """Attend.

        Args:
            hidden_states: [B, N, hidden_size].
            encoder_hidden_states: [B, L, cross_attention_dim], None for self-attention.
            attention_mask: bool [B, L], True = keep; or additive and broadcastable to [B, heads, N, L].
            rotation: of queries and keys, see rope.RotaryPositions.
            processor_arguments: for a processor of the caller's own.
        Returns:
            [B, N, hidden_size].
        """
        return self.processor(
            self, hidden_states, encoder_hidden_states, attention_mask, rotation, **processor_arguments
        )
