"""The parts of a recipe that train a flow: a model from nothing, or a finished one on footage."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from vgen.training.config.base import Count, Strict
from vgen.training.config.data import LatentCacheConfig, LoraConfig
from vgen.training.config.stages import ShiftConfig, TaskMix
from vgen.training.objectives.registry import ObjectiveConfig


class TextEncoderConfig(Strict):
    """A small T5 encoder trained together with the transformer."""

    d_model: Count = 128
    d_kv: Count = 32
    d_ff: Count = 256
    num_layers: Count = 2
    num_heads: Count = 4
    vocabulary: int = Field(default=1024, ge=160)
    max_length: Count = 64


class FlowSettings(ObjectiveConfig):
    """What training from nothing and fine-tuning have in common.

    `explicit_attention` holds attention scores in memory: faster on a CPU while sequences are short.
    """

    tasks: TaskMix = TaskMix()
    text_drop: float = Field(default=0.1, ge=0, le=1)
    uniform_share: float = Field(default=0.1, ge=0, le=1)
    explicit_attention: bool = False
    sample_clips: int = Field(default=8, ge=0)

    @property
    def encodes_in(self) -> Literal["float32", "bfloat16"]:
        """What given material is encoded in during a step."""
        return "float32"

    @property
    def freezes(self) -> bool:
        """Whether most weights of the transformer are frozen."""
        return False

    @property
    def frozen_weight_bytes(self) -> float | None:
        """Bytes of a frozen weight where it is quantised; None: as it is held."""
        return None

    @property
    def offloads(self) -> bool:
        """Whether frozen blocks stay on the host."""
        return False


class FlowObjectiveConfig(FlowSettings):
    """Flow matching of a video transformer on cached latents. `model` holds the arguments of VideoDiT.

    `compile_blocks` compiles the transformer's blocks (torch.compile, for all lengths at once), which needs a C++
    compiler on a CPU.
    """

    kind: Literal["flow"]
    vae: Path
    model: dict[str, Any]
    text_encoder: TextEncoderConfig = TextEncoderConfig()
    latents: LatentCacheConfig
    init: Path | None = None
    compile_blocks: bool = False
    shift: ShiftConfig = ShiftConfig()
    shift_terminal: float | None = Field(default=None, gt=0, lt=1)
    validation_clips: Count = 64
    validation_frames: Count = 17
    sample_steps: Count = 30
    guidance_scale: float = Field(default=4.0, ge=0)
    defaults: dict[str, Any] = Field(default_factory=dict)

    @property
    def encodes_in(self) -> Literal["float32", "bfloat16"]:
        """See FlowSettings: as the latent cache does."""
        return self.latents.encode_dtype

    def tiny(self) -> dict[str, Any]:
        """See ObjectiveConfig."""
        latents = {"latents.groups": dict.fromkeys(self.latents.groups, 4), "latents.batch": 2}
        return {"validation_clips": 2, **latents, "sample_clips": 1, "sample_steps": 2, "compile_blocks": False}


class FineTuneObjectiveConfig(FlowSettings):
    """Flow matching of a finished model on cached footage: a LoRA on its frozen transformer, or the whole transformer.

    Sizes and frame rates are those of the cache, the density of sigmas follows the model's own scheduler.
    `base_weights` keeps the frozen linear layers of all blocks in 8 bits (LoRA only; needs torchao). `offload` keeps
    the frozen weights of all blocks on the host, and brings two blocks at a time to the device (LoRA only).
    """

    kind: Literal["finetune"]
    model: str
    mode: Literal["lora", "full"] = "lora"
    lora: LoraConfig = LoraConfig()
    tasks: TaskMix = TaskMix(text=0.75, first=0.25, prefix=0, other=0)
    gradient_checkpointing: bool = False
    base_weights: Literal["keep", "int8", "float8"] = "keep"
    offload: bool = False
    validation_samples: Count = 8
    sample_clips: int = Field(default=2, ge=0)

    @property
    def holds_bfloat16(self) -> bool:
        """See ObjectiveConfig."""
        return True

    @property
    def freezes(self) -> bool:
        """See FlowSettings."""
        return self.mode == "lora"

    @property
    def frozen_weight_bytes(self) -> float | None:
        """See FlowSettings."""
        return None if self.base_weights == "keep" else 1.0

    @property
    def offloads(self) -> bool:
        """See FlowSettings."""
        return self.offload

    def tiny(self) -> dict[str, Any]:
        """See ObjectiveConfig."""
        return {"validation_samples": 2, "sample_clips": 1}

    @model_validator(mode="after")
    def _check_base(self) -> FineTuneObjectiveConfig:
        if self.base_weights != "keep" and self.mode != "lora":
            raise ValueError(f"base_weights={self.base_weights} freezes the weights that mode=full trains; use keep")
        if self.offload and self.mode != "lora":
            raise ValueError("offload=true keeps frozen weights on the host, and mode=full trains all; use mode=lora")
        if self.offload and self.base_weights != "keep":
            raise ValueError(f"offload=true and base_weights={self.base_weights} cannot be combined; use keep")
        return self


def as_fine_tuning(config: ObjectiveConfig) -> FineTuneObjectiveConfig | None:
    """The configuration if it is that of a fine-tuning."""
    return config if isinstance(config, FineTuneObjectiveConfig) else None
