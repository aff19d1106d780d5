"""VideoDiT: the diffusion transformer. Tokens of all frames attend to each other and to the text.

Config keys and tensor names are those of diffusers' LTXVideoTransformer3DModel, so public LTX-Video weights load as
they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import FromOriginalModelMixin, PeftAdapterMixin
from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput
from diffusers.models.attention import AttentionMixin
from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import apply_lora_scale
from torch import Tensor, nn

from vgen.errors import ShapeError
from vgen.models.diffusers_compat import OptionalConfigKeys, register_block, register_class, register_single_file
from vgen.models.layers import AdaLayerNormSingle, FeedForward, ModuleListOf, RMSNorm, TextProjection
from vgen.models.transformer.attention import KeptText, VideoAttention, VideoAttentionProcessor
from vgen.models.transformer.loop_inputs import HoistedInputs
from vgen.models.transformer.loop_memo import remembered
from vgen.models.transformer.rope import RotaryPositions, Rotation
from vgen.models.transformer.skip import BlockSkip, plan_skips, replace_rows
from vgen.models.weights_io import LocalWeights
from vgen.types import SkipLayers


class VideoDiTBlock(nn.Module):
    """Self-attention, cross-attention to the text, feed-forward; the first and the last modulated by the timestep.

    Args:
        hidden_size: channels.
        num_heads: heads.
        head_dim: channels of a head.
        cross_attention_dim: channels of the projected text.
        qk_norm, attention_bias, attention_out_bias: see VideoAttention.
        activation_fn: see FeedForward.
        eps: of the norms.
        elementwise_affine: weights in the norms.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        head_dim: int,
        cross_attention_dim: int,
        qk_norm: str,
        activation_fn: str,
        attention_bias: bool,
        attention_out_bias: bool,
        eps: float,
        elementwise_affine: bool,
    ) -> None:
        super().__init__()
        heads = (num_heads, head_dim)
        biases = (attention_bias, attention_out_bias)
        self.norm1 = RMSNorm(hidden_size, eps, elementwise_affine)
        self.attn1 = VideoAttention(hidden_size, *heads, None, *biases, qk_norm)
        self.norm2 = RMSNorm(hidden_size, eps, elementwise_affine)
        self.attn2 = VideoAttention(hidden_size, *heads, cross_attention_dim, *biases, qk_norm)
        self.ff = FeedForward(hidden_size, activation_fn)
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
            temb: [B, N or 1, 6 * D], modulation by token or by sample; or [B, N or 1, 6, D], this block's own table
                added already.
            rotation: see rope.RotaryPositions.
            encoder_attention_mask: see VideoAttention.
            skip: what is left out, see types.SkipLayers.
            kept_text: keys and values of the text, see VideoAttention.keep_text.
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
        told = self.attn2(
            hidden_states=hidden_states,
            encoder_hidden_states=encoder_hidden_states,
            attention_mask=encoder_attention_mask,
            **({} if kept_text is None else {"kept_text": kept_text}),
        )
        hidden_states, modulated = self.norm2.modulated(hidden_states, told, shift_ff, scale_ff)
        hidden_states = torch.addcmul(hidden_states, self.ff(modulated), gate_ff)
        return replace_rows(hidden_states, before, modes["transformer_block"]) if left_out else hidden_states


class VideoDiT(
    HoistedInputs,
    OptionalConfigKeys,
    LocalWeights,
    ModelMixin,
    ConfigMixin,
    AttentionMixin,
    FromOriginalModelMixin,
    PeftAdapterMixin,
    CacheMixin,
):
    """Predicts the velocity (noise - clean) of noisy video tokens.

    Args:
        in_channels: of the latents.
        out_channels: of the prediction.
        patch_size, patch_size_t: latents of a token; only scale the positions of a grid without coordinates.
        num_attention_heads, attention_head_dim: their product is the hidden size.
        cross_attention_dim: channels of the projected text; equals the hidden size.
        num_layers: blocks.
        activation_fn, qk_norm, attention_bias, attention_out_bias, norm_eps, norm_elementwise_affine: see
            VideoDiTBlock.
        caption_channels: channels of the text features.
        rope_theta, rope_base_size: see rope.RotaryPositions. Not written to a config where they are the default.
    """

    _supports_gradient_checkpointing = True
    _supports_group_offloading = True
    _skip_layerwise_casting_patterns: ClassVar[list[str]] = ["norm"]
    _no_split_modules: ClassVar[list[str]] = ["VideoDiTBlock"]
    _repeated_blocks: ClassVar[list[str]] = ["VideoDiTBlock"]
    _optional_config_keys: ClassVar[dict[str, Any]] = {"rope_theta": 10000.0, "rope_base_size": (20, 2048, 2048)}
    _cp_plan: ClassVar[dict[str, Any]] = {
        "": {
            "hidden_states": ContextParallelInput(split_dim=1, expected_dims=3, split_output=False),
            "encoder_hidden_states": ContextParallelInput(split_dim=1, expected_dims=3, split_output=False),
            "encoder_attention_mask": ContextParallelInput(split_dim=1, expected_dims=2, split_output=False),
            "timestep": ContextParallelInput(split_dim=1, expected_dims=2, split_output=False),
        },
        "rope": {
            0: ContextParallelInput(split_dim=1, expected_dims=3, split_output=True),
            1: ContextParallelInput(split_dim=1, expected_dims=3, split_output=True),
        },
        "proj_out": ContextParallelOutput(gather_dim=1, expected_dims=3),
    }

    @register_to_config
    def __init__(
        self,
        in_channels: int = 128,
        out_channels: int | None = 128,
        patch_size: int = 1,
        patch_size_t: int = 1,
        num_attention_heads: int = 32,
        attention_head_dim: int = 64,
        cross_attention_dim: int = 2048,
        num_layers: int = 28,
        activation_fn: str = "gelu-approximate",
        qk_norm: str = "rms_norm_across_heads",
        norm_elementwise_affine: bool = False,
        norm_eps: float = 1e-6,
        caption_channels: int = 4096,
        attention_bias: bool = True,
        attention_out_bias: bool = True,
        rope_theta: float = 10000.0,
        rope_base_size: tuple[float, float, float] = (20, 2048, 2048),
    ) -> None:
        super().__init__()
        hidden_size = num_attention_heads * attention_head_dim
        if cross_attention_dim != hidden_size:
            raise ShapeError(
                f"cross_attention_dim={cross_attention_dim} must equal num_attention_heads * attention_head_dim = "
                f"{hidden_size}: the text is projected to the hidden size; use {hidden_size}."
            )
        self.proj_in = nn.Linear(in_channels, hidden_size)
        self.scale_shift_table = nn.Parameter(torch.randn(2, hidden_size) / hidden_size**0.5)
        self.time_embed = AdaLayerNormSingle(hidden_size)
        self.caption_projection = TextProjection(caption_channels, hidden_size)
        self.rope = RotaryPositions(hidden_size, rope_theta, rope_base_size, patch_size, patch_size_t)
        self.transformer_blocks = ModuleListOf(
            VideoDiTBlock(
                hidden_size,
                num_attention_heads,
                attention_head_dim,
                cross_attention_dim,
                qk_norm,
                activation_fn,
                attention_bias,
                attention_out_bias,
                norm_eps,
                norm_elementwise_affine,
            )
            for _ in range(num_layers)
        )
        self.norm_out = nn.LayerNorm(hidden_size, eps=1e-6, elementwise_affine=False)
        self.proj_out = nn.Linear(hidden_size, out_channels or in_channels)
        self.gradient_checkpointing = False

    @apply_lora_scale("attention_kwargs")
    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        timestep: Tensor,
        encoder_attention_mask: Tensor | None = None,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        rope_interpolation_scale: tuple[float, float, float] | Tensor | None = None,
        video_coords: Tensor | None = None,
        attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
        skip_layers: SkipLayers | Sequence[SkipLayers | None] | None = None,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """Predict the velocity.

        Args:
            hidden_states: [B, N, in_channels], noisy tokens, frame-major.
            encoder_hidden_states: [B, L, caption_channels], text features.
            timestep: [B], or [B, N] for one by token; 1000 * sigma.
            encoder_attention_mask: [B, L], True or 1 = keep; None keeps all.
            num_frames, height, width: latent size, where no coordinates are given.
            rope_interpolation_scale: seconds, rows and columns of one latent, where no coordinates are given.
            video_coords: [B or 1, 3, N], seconds, pixel rows, pixel columns.
            attention_kwargs: {"scale": weight of LoRA adapters}.
            return_dict: False returns a tuple.
            skip_layers: what is left out of which blocks; one for all samples, or one (or None) for each of as many
                equal parts of the batch.
        Returns:
            `sample`, [B, N, out_channels].
        Raises:
            ShapeError: tokens, timesteps or positions that do not fit each other.
        """
        memo = self._settled_memo()
        grid = (num_frames, height, width, rope_interpolation_scale)
        rotation = remembered(
            None if isinstance(rope_interpolation_scale, Tensor) else memo,
            ("rotation", *grid) if memo is not None else "",
            (video_coords,),
            lambda: self.rope(hidden_states, *grid, video_coords),
        )
        _check_tokens(hidden_states, timestep, rotation)
        batch = hidden_states.shape[0]
        hidden_states = self.proj_in(hidden_states)
        tembs, last = self._time(timestep, hidden_states.dtype, memo)
        text, mask = self._text(encoder_hidden_states, encoder_attention_mask, memo)
        kept, mask = self._kept_text(text, mask, memo)
        skips: list[BlockSkip | None] = [None] * len(self.transformer_blocks)
        if skip_layers is not None:
            skips = plan_skips(skip_layers, len(skips), batch, hidden_states.device)

        arguments = (hidden_states, text, tembs, rotation, mask, kept)
        if self.block_runner is None or skip_layers is not None:
            hidden_states = self._run_blocks(*arguments, skips=skips)
        else:
            hidden_states = self.block_runner(self._run_blocks, *arguments)

        shift, scale = last.unbind(dim=2)
        velocity = self.proj_out(torch.addcmul(shift, self.norm_out(hidden_states), 1 + scale))
        return Transformer2DModelOutput(sample=velocity) if return_dict else (velocity,)

    def _run_blocks(
        self,
        hidden_states: Tensor,
        text: Tensor,
        tembs: Iterable[Tensor],
        rotation: Rotation,
        mask: Tensor | None,
        kept: Sequence[KeptText | None],
        skips: Sequence[BlockSkip | None] | None = None,
    ) -> Tensor:
        """All blocks, [B, N, D] -> [B, N, D]; `tembs`, `kept`, `skips`: one entry for each, see VideoDiTBlock."""
        skips = skips or [None] * len(self.transformer_blocks)
        if self._blocks_are_compiled():
            # No view, and float32 where autocast makes it so from the first block on: one program fits all blocks.
            kind = hidden_states.device.type
            mixed = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
            hidden_states = hidden_states.to(torch.float32 if mixed else hidden_states.dtype, copy=True)
        for block, temb, known, skip in zip(self.transformer_blocks, tembs, kept, skips, strict=True):
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                hidden_states = self._gradient_checkpointing_func(
                    block, hidden_states, text, temb, rotation, mask, skip
                )
            else:
                hidden_states = block(
                    hidden_states=hidden_states,
                    encoder_hidden_states=text,
                    temb=temb,
                    rotation=rotation,
                    encoder_attention_mask=mask,
                    skip=skip,
                    **({} if known is None else {"kept_text": known}),
                )
        return hidden_states

    def set_attention_backend(self, backend: str) -> None:
        """Compute attention of this model with `backend`, a name that diffusers' dispatcher knows.

        Other models, and the process-wide default, stay as they are.
        """
        with attention_backend(AttentionBackendName.NATIVE):  # what is set within is undone on leaving
            super().set_attention_backend(backend)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Weights to train from scratch.

        Linear layers Xavier-uniform; embeddings of time and text normal with 0.02; the modulation near zero, so that
        blocks start close to the identity yet their gates pass gradients; the output zero.

        Args:
            generator: makes the draw reproducible.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for network in (self.time_embed.emb.timestep_embedder, self.caption_projection):
            for layer in (network.linear_1, network.linear_2):
                layer.weight.normal_(0.0, 0.02, generator=generator)
        self.time_embed.linear.weight.normal_(0.0, 0.002, generator=generator)
        for block in self.transformer_blocks:
            block.scale_shift_table.normal_(0.0, 0.02, generator=generator)
            block.scale_shift_table[[2, 5]] += 0.1  # the two gates
        self.scale_shift_table.normal_(0.0, 0.02, generator=generator)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)


def _check_tokens(hidden_states: Tensor, timestep: Tensor, rotation: Rotation) -> None:
    batch, tokens = hidden_states.shape[:2]
    if timestep.ndim not in (1, 2) or timestep.shape[0] != batch or timestep.shape[1:].numel() not in (1, tokens):
        raise ShapeError(
            f"timestep has shape {tuple(timestep.shape)}: it must be [{batch}], or [{batch}, {tokens}] for one by "
            "token."
        )
    positions = rotation[0].shape
    if positions[1] != tokens or positions[0] not in (1, batch):
        raise ShapeError(
            f"positions for {positions[0]} x {positions[1]} tokens came with {batch} x {tokens} tokens: video_coords "
            f"must be [{batch}, 3, {tokens}], or num_frames * height * width must be {tokens}."
        )


register_class(VideoDiT)
register_single_file(VideoDiT, "LTXVideoTransformer3DModel")
register_block(VideoDiTBlock, VideoAttentionProcessor)
