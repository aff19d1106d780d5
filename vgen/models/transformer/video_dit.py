"""VideoDiT: the diffusion transformer. Tokens of all frames attend to each other and to the text.

Config keys and tensor names are those of diffusers' LTXVideoTransformer3DModel, so public LTX-Video weights load as
they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

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
from vgen.models.diffusers_compat import OptionalConfigKeys, register_class, register_single_file
from vgen.models.layers import AdaLayerNormSingle, ModuleListOf, TextProjection
from vgen.models.transformer.block import BlockInputs, VideoDiTBlock
from vgen.models.transformer.rope import RotaryPositions, Rotation
from vgen.models.transformer.skip import BlockSkip, plan_skips
from vgen.models.weights_io import LocalWeights
from vgen.types import SkipLayers

Grid = tuple[int | None, int | None, int | None, tuple[float, float, float] | Tensor | None]
"""Latent frames, rows and columns, and the scale of a latent: positions where no coordinates are given."""


class ForwardSteps(Protocol):
    """The two steps of VideoDiT.forward that can be done in another way with the same result; see VideoDiT for both."""

    def embed(
        self,
        hidden_states: Tensor,
        features: Tensor,
        timestep: Tensor,
        mask: Tensor | None,
        grid: Grid,
        coordinates: Tensor | None,
    ) -> tuple[BlockInputs, Tensor]:
        """Everything that is computed before the blocks."""

    def run_blocks(self, inputs: BlockInputs, skips: Sequence[BlockSkip | None] | None = None) -> Tensor:
        """All blocks."""


class VideoDiT(
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
        patch_size, patch_size_t: latents per token; only scale the positions of a grid without coordinates.
        num_attention_heads, attention_head_dim: their product is the hidden size.
        cross_attention_dim: channels of the projected text; equals the hidden size.
        num_layers: blocks.
        activation_fn: see layers.FeedForward.
        qk_norm, attention_bias, attention_out_bias: see attention.VideoAttention.
        norm_eps, norm_elementwise_affine: see layers.RMSNorm.
        caption_channels: channels of the text features.
        rope_theta, rope_base_size: see rope.RotaryPositions. Not written to a config where they are the default.
    """

    fast_path: ForwardSteps | None = None
    """Takes the place of `embed` and `run_blocks` for the time of a loop; put on by vgen.engine.speed.fast_path."""
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
        self.transformer_blocks = ModuleListOf(VideoDiTBlock(self.config) for _ in range(num_layers))
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
            timestep: [B], or [B, N] for one per token; 1000 * sigma.
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
        skips = None
        if skip_layers is not None:
            skips = plan_skips(skip_layers, len(self.transformer_blocks), len(hidden_states), hidden_states.device)
        steps: ForwardSteps = self.fast_path or self
        grid = (num_frames, height, width, rope_interpolation_scale)
        inputs, last = steps.embed(
            hidden_states, encoder_hidden_states, timestep, encoder_attention_mask, grid, video_coords
        )
        hidden_states = steps.run_blocks(inputs, skips)
        shift, scale = last.unbind(dim=2)
        velocity = self.proj_out(torch.addcmul(shift, self.norm_out(hidden_states), 1 + scale))
        return Transformer2DModelOutput(sample=velocity) if return_dict else (velocity,)

    def embed(
        self,
        hidden_states: Tensor,
        features: Tensor,
        timestep: Tensor,
        mask: Tensor | None,
        grid: Grid,
        coordinates: Tensor | None,
    ) -> tuple[BlockInputs, Tensor]:
        """What the blocks work on, and shift and scale of the last norm, [B, N or 1, 2, D]; arguments: see `forward`.

        Raises:
            ShapeError: tokens, timesteps or positions that do not fit each other.
        """
        rotation = self.rope(hidden_states, *grid, coordinates)
        check_tokens(hidden_states, timestep, rotation)
        tokens = self.proj_in(hidden_states)
        modulation, last = self.embed_time(timestep, tokens.dtype)
        text, mask = self.caption_projection(features), self.text_mask(mask)
        return BlockInputs(tokens, text, mask, rotation, modulation), last

    def embed_time(self, timestep: Tensor, dtype: torch.dtype) -> tuple[Sequence[Tensor], Tensor]:
        """`modulation` of BlockInputs, and shift and scale of the last norm, for timesteps [B] or [B, N]."""
        batch = len(timestep)
        temb, embedded = (value.unflatten(0, (batch, -1)) for value in self.time_embed(timestep.flatten(), dtype))
        return [temb] * len(self.transformer_blocks), embedded.unsqueeze(2) + self.scale_shift_table

    def text_mask(self, mask: Tensor | None) -> Tensor | None:
        """A mask that every attention backend takes: bool [B, L]; an additive one [B, 1, L] becomes [B, 1, 1, L].

        A sample without a single kept token attends to all of them: softmax over nothing has no answer. (Not where the
        text is spread over several processes: each would see only its part.)
        """
        if mask is None:
            return None
        if mask.ndim == 3:
            return mask.unsqueeze(1)
        keep = mask if mask.dtype == torch.bool else mask > 0.5
        return keep if self.text_is_spread else keep | ~keep.any(dim=-1, keepdim=True)

    @property
    def text_is_spread(self) -> bool:
        """Whether each of several processes sees only a part of the text."""
        return any(getattr(block.attn2.processor, "_parallel_config", None) for block in self.transformer_blocks[:1])

    def run_blocks(self, inputs: BlockInputs, skips: Sequence[BlockSkip | None] | None = None) -> Tensor:
        """All blocks: [B, N, D].

        Args:
            inputs: of `embed`.
            skips: what each block leaves out.
        """
        hidden_states, text, mask, rotation, modulation, kept_text = inputs
        nothing = [None] * len(self.transformer_blocks)
        for block, temb, kept, skip in zip(
            self.transformer_blocks, modulation, kept_text or nothing, skips or nothing, strict=True
        ):
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
                    kept_text=kept,
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


def check_tokens(hidden_states: Tensor, timestep: Tensor, rotation: Rotation) -> None:
    """Refuse timesteps or positions that do not fit the tokens.

    Raises:
        ShapeError: with what would fit.
    """
    batch, tokens = hidden_states.shape[:2]
    if timestep.ndim not in (1, 2) or timestep.shape[0] != batch or timestep.shape[1:].numel() not in (1, tokens):
        raise ShapeError(
            f"timestep has shape {tuple(timestep.shape)}: it must be [{batch}], or [{batch}, {tokens}] for one per "
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
