"""The block that VideoDiT repeats, and what all blocks work on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vgen.models.diffusers_compat import register_block
from vgen.models.layers import FeedForward, RMSNorm
from vgen.models.transformer.attention import KeptText, VideoAttention, VideoAttentionProcessor
from vgen.models.transformer.rope import Rotation
from vgen.models.transformer.skip import BlockSkip, replace_rows


class BlockInputs(NamedTuple):
    """What the blocks work on.

    Attributes:
        hidden_states: [B, N, D], embedded tokens.
        text: [B, L, D], projected.
        mask: of the text, see VideoAttention.
        rotation: see rope.RotaryPositions.
        modulation: for each block its `temb`, see VideoDiTBlock.
        kept_text: for each block keys and values of the text; None: no block has them yet.
    """

    hidden_states: Tensor
    text: Tensor
    mask: Tensor | None
    rotation: Rotation
    modulation: Iterable[Tensor]
    kept_text: Sequence[KeptText] | None = None


class VideoDiTBlock(nn.Module):
    """Self-attention, cross-attention to the text, feed-forward; the first and the last modulated by the timestep.

    Args:
        config: of VideoDiT.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        heads, head_dim = config.num_attention_heads, config.attention_head_dim
        hidden_size = heads * head_dim
        norm = (hidden_size, config.norm_eps, config.norm_elementwise_affine)
        attention = (config.attention_bias, config.attention_out_bias, config.qk_norm)
        self.norm1 = RMSNorm(*norm)
        self.attn1 = VideoAttention(hidden_size, heads, head_dim, None, *attention)
        self.norm2 = RMSNorm(*norm)
        self.attn2 = VideoAttention(hidden_size, heads, head_dim, config.cross_attention_dim, *attention)
        self.ff = FeedForward(hidden_size, config.activation_fn)
        self.scale_shift_table = nn.Parameter(torch.randn(6, hidden_size) / hidden_size**0.5)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        rotation: Rotation | None = None,
        encoder_attention_mask: Tensor | None = None,
        skip: BlockSkip | None = None,
        kept_text: KeptText | None = None,
    ) -> Tensor:
        """[B, N, D] -> [B, N, D].

        Args:
            hidden_states: video tokens.
            encoder_hidden_states: [B, L, cross_attention_dim], projected text.
            temb: [B, N or 1, 6 * D], modulation per token or per sample; or [B, N or 1, 6, D], this block's own table
                added already.
            rotation: see rope.RotaryPositions.
            encoder_attention_mask: see VideoAttention.
            skip: what is left out, see types.SkipLayers.
            kept_text: keys and values of the text where they were computed before, see VideoAttention.
        """
        before, modes = hidden_states, skip or {}
        left_out = "transformer_block" in modes
        if left_out and modes["transformer_block"] is None:
            return hidden_states
        modulation = temb
        if temb.ndim == 3:
            modulation = temb.unflatten(-1, self.scale_shift_table.shape) + self.scale_shift_table
        shift_attention, scale_attention, gate_attention, shift_ff, scale_ff, gate_ff = modulation.unbind(dim=2)
        _, modulated = self.norm1.modulated(hidden_states, None, shift_attention, scale_attention)
        attended = self.attn1(hidden_states=modulated, rotation=rotation, **({"skip": skip} if skip else {}))
        hidden_states = torch.addcmul(hidden_states, attended, gate_attention)
        attended = self.attn2(
            hidden_states=hidden_states,
            encoder_hidden_states=encoder_hidden_states,
            attention_mask=encoder_attention_mask,
            **({} if kept_text is None else {"kept_text": kept_text}),
        )
        hidden_states, modulated = self.norm2.modulated(hidden_states, attended, shift_ff, scale_ff)
        hidden_states = torch.addcmul(hidden_states, self.ff(modulated), gate_ff)
        return replace_rows(hidden_states, before, modes["transformer_block"]) if left_out else hidden_states


register_block(VideoDiTBlock, VideoAttentionProcessor)
