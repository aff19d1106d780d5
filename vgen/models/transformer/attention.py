"""Attention: one module for self- and cross-attention, and the one call that every backend stands behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar, Protocol

import torch
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import (
    AttentionBackendName,
    _AttentionBackendRegistry,
    dispatch_attention_fn,
)
from torch import Tensor, nn

from vgen import ops
from vgen.errors import RequestError
from vgen.models.fusing import plain, together
from vgen.models.transformer.rope import Rotation
from vgen.models.transformer.skip import BlockSkip, replace_rows

Chooser = Callable[[Tensor, Tensor, Tensor, Tensor | None], str | None]
"""From queries, keys, values (each [B, N or L, heads, head_dim]) and mask to a backend's name; None: the default."""
_chooser: ContextVar[Chooser | None] = ContextVar("attention chooser", default=None)

KeptText = tuple[tuple[Tensor, Tensor], ...]
"""Keys and values of the text, [b, L, D] each, a pair for each run of samples with texts of one length."""


def mask_for(backend: AttentionBackendName | None, mask: Tensor | None) -> Tensor | None:
    """The mask in the one shape that `backend` understands.

    A bool mask [B, L] suits only xformers: others take it for [N, L], or refuse it. A bool mask [B, 1, 1, L] suits all
    but xformers, which would add it to the scores.
    """
    if mask is None or mask.ndim != 2:
        return mask
    if backend is None:
        backend, _ = _AttentionBackendRegistry.get_active_backend()
    return mask if backend == AttentionBackendName.XFORMERS else mask[:, None, None]


@contextmanager
def attention_chosen_by(chooser: Chooser) -> Iterator[None]:
    """Inside, `chooser` says which backend computes an attention, in models that were not given one.

    Compiled blocks, and attention that is spread over processes, do not ask.
    """
    token = _chooser.set(chooser)
    try:
        yield
    finally:
        _chooser.reset(token)


def attention_backends() -> list[str]:
    """Names of all attention backends that `VideoDiT.set_attention_backend` knows; not all need be installed."""
    return sorted(backend.value for backend in AttentionBackendName)


class AcrossHeadsNorm(nn.RMSNorm):
    """RMS norm whose weight follows the input's dtype: under autocast a mixed pair falls back to a slow path."""

    eps: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D], same dtype."""
        return ops.norm_rotate(hidden_states, self.weight, None, None, self.eps)

    def rotated(self, hidden_states: Tensor, rotation: Rotation | None) -> Tensor:
        """The norm, then the turn by `rotation`, in one operation where nothing is hooked into this layer."""
        if plain(self):
            cosines, sines = rotation or (None, None)
            return ops.norm_rotate(hidden_states, self.weight, cosines, sines, self.eps)
        normed = self(hidden_states)
        return normed if rotation is None else ops.rotate(normed, *rotation)


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
        kept_text: KeptText | None = None,
    ) -> Tensor:
        """See VideoAttention.forward.

        `skip`: samples whose attention is replaced, by mode (see types.SkipLayers); `kept_text`: of
        `TextKeeper.keep_text`, together with the mask that it leaves.
        """
        keeper = None if torch.compiler.is_compiling() else attention.text_keeper
        if kept_text is None and keeper is not None and encoder_hidden_states is not None and not skip:
            kept_text, attention_mask = keeper.keep_text(attention, encoder_hidden_states, attention_mask)
        if kept_text is not None:
            return self._to_text(attention, kept_text, hidden_states, attention_mask)
        query, key, value = attention.project(hidden_states, encoder_hidden_states)
        query, key = attention.norm_q.rotated(query, rotation), attention.norm_k.rotated(key, rotation)
        attended = self._attend(attention, query, key, value, attention_mask)
        if skip is not None:
            for mode, instead in (("attention_values", value), ("attention_skip", hidden_states)):
                if mode in skip:
                    attended = replace_rows(attended, instead.to(attended.dtype), skip[mode])
        for layer in attention.to_out:
            attended = layer(attended)
        return attended

    def _attend(
        self, attention: VideoAttention, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
    ) -> Tensor:
        """[B, N, D], [B, L, D], [B, L, D] -> [B, N, D]."""

        def by_heads(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            backend = self._attention_backend
            # Measuring takes its own time in every process, and these go in step: what is spread is not measured.
            alone = self._parallel_config is None and attention.sequence is None
            if backend is None and alone and not torch.compiler.is_compiling():
                chooser = _chooser.get()
                chosen = None if chooser is None else chooser(query, key, value, mask)
                backend = None if chosen is None else AttentionBackendName(chosen)
            return dispatch_attention_fn(
                query,
                key,
                value,
                attn_mask=mask_for(backend, mask),
                backend=backend,
                parallel_config=self._parallel_config,
            )

        dtype = query.dtype
        query, key, value = (part.unflatten(2, (attention.heads, -1)) for part in (query, key, value))
        if attention.sequence is None:
            attended = by_heads(query, key, value)
        else:
            attended = attention.sequence.attend(query, key, value, by_heads)
        return attended.flatten(2, 3).to(dtype)

    def _to_text(self, attention: VideoAttention, kept: KeptText, hidden_states: Tensor, mask: Tensor | None) -> Tensor:
        """Cross-attention inside a loop: keys and values are at hand, and padding takes no part."""
        query = attention.norm_q.rotated(attention.to_q(hidden_states), None)
        if len(kept) == 1:
            attended = self._attend(attention, query, *kept[0], mask)
        else:
            queries = query.split([key.shape[0] for key, _ in kept])
            attended = torch.cat(
                [self._attend(attention, part, *pair, None) for part, pair in zip(queries, kept, strict=True)]
            )
        for layer in attention.to_out:
            attended = layer(attended)
        return attended


class TextKeeper(Protocol):
    """Computes keys and values of the text once for all steps of a loop, see vgen.engine.speed.fast_path."""

    def keep_text(self, attention: VideoAttention, text: Tensor, mask: Tensor | None) -> tuple[KeptText, Tensor | None]:
        """Keys and values of `text` [B, L, D] without its padding, and the mask that is then still needed."""


class SpreadTokens(Protocol):
    """Tokens on several processes, see vgen.engine.processes.sequence_parallel."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, attention: Callable[..., Tensor]) -> Tensor:
        """[B, n, heads, D] of this process's tokens -> the same, after `attention` to those of all processes."""


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

    text_keeper: TextKeeper | None = None
    """Of the loop under way, in cross-attention; None outside."""
    sequence: SpreadTokens | None = None
    """Where each of several processes has a part of the tokens: how they attend to all of them."""
    fused_projections: bool
    to_qkv: nn.Linear
    to_kv: nn.Linear
    processor: Callable[..., Tensor]
    set_processor: Callable[[Callable[..., Tensor]], None]  # these five come from diffusers' mixin
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
        if encoder_hidden_states is not None:
            return self.to_q(hidden_states), *self.project_text(encoder_hidden_states)
        if self.fused_projections:
            query, key, value = self.to_qkv(hidden_states).chunk(3, dim=-1)
        else:
            query, key, value = together(hidden_states, self.to_q, self.to_k, self.to_v)
        return query, key, value

    def project_text(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of what is attended to: [B, L, D] each, keys not normalised yet."""
        if not self.fused_projections:
            return self.to_k(text), self.to_v(text)
        key, value = self.to_kv(text).chunk(2, dim=-1)
        return key, value

    def text_layers(self) -> tuple[nn.Module, ...]:
        """The layers that keys and values of the text depend on."""
        projections = (self.to_kv,) if self.fused_projections else (self.to_k, self.to_v)
        return (*projections, self.norm_k)

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
