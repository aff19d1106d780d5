"""Attention written out, for training on a CPU: at 80 tokens its backward takes half the time of the fused one."""

from __future__ import annotations

from torch import Tensor

from vgen.models import VideoDiT
from vgen.models.attention import VideoAttention, VideoAttentionProcessor
from vgen.models.rope import Rotation, rotate

_HIDDEN_SCORE = -1e9


class ExplicitAttentionProcessor(VideoAttentionProcessor):
    """softmax(q k^T / sqrt d) v with the scores held in memory: worth it where sequences are short."""

    def __call__(
        self,
        attention: VideoAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotation: Rotation | None = None,
    ) -> Tensor:
        """See VideoAttention.forward; masks are bool, [B, L] or [B, 1, 1, L]."""
        query, key, value = attention.project(hidden_states, encoder_hidden_states)
        query, key = attention.norm_q(query), attention.norm_k(key)
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        query, key, value = (part.unflatten(2, (attention.heads, -1)).transpose(1, 2) for part in (query, key, value))
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        if attention_mask is not None:
            mask = attention_mask[:, None, None] if attention_mask.ndim == 2 else attention_mask
            scores = scores.masked_fill(~mask, _HIDDEN_SCORE)
        attended = (scores.softmax(dim=-1).to(value.dtype) @ value).transpose(1, 2).flatten(2).to(hidden_states.dtype)
        for layer in attention.to_out:
            attended = layer(attended)
        return attended


def use_explicit_attention(transformer: VideoDiT) -> None:
    """Let every attention of `transformer` compute its scores explicitly; changes nothing that is saved."""
    for module in transformer.modules():
        if isinstance(module, VideoAttention):
            module.set_processor(ExplicitAttentionProcessor())
