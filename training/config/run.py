"""What a recipe says of a run besides its objective: data, stages, optimiser, how often things happen."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator

from vgen.training.config.base import Count, Strict
from vgen.training.config.data import FootageConfig, SpritesConfig, data_kind
from vgen.training.config.stages import Stage


class OptimizerConfig(Strict):
    """AdamW for everything (in 8 bits: adamw8bit), or Muon for the hidden matrices and AdamW for the rest."""

    name: Literal["adamw", "adamw8bit", "muon"] = "adamw"
    lr: float = Field(default=1e-3, gt=0)
    muon_lr: float | None = Field(default=None, gt=0)
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)


class ScheduleConfig(Strict):
    """Warm-up and decay of the learning rate, in steps; at each step of `restarts` the schedule starts again."""

    name: Literal["cosine", "wsd", "constant"] = "cosine"
    warmup_steps: int = Field(default=50, ge=0)
    decay_steps: int = Field(default=0, ge=0)
    final_ratio: float = Field(default=0.02, ge=0, le=1)
    restarts: list[Count] = Field(default_factory=list)


class EmaConfig(Strict):
    """Averaging of the weights: decay = min(limit, (1 + step) / (10 + step))."""

    limit: float = Field(default=0.999, ge=0, lt=1)


class EveryConfig(Strict):
    """How often things happen, in steps; 0 switches validation off."""

    log: Count = 25
    checkpoint: Count = 500
    validate_: int = Field(default=500, ge=0, alias="validate")


class CheckpointConfig(Strict):
    """How many checkpoints stay on disk."""

    keep: int = Field(default=2, ge=2)


class RunConfig(Strict):
    """A training run without its objective, see `vgen.training.recipe.Recipe`.

    `sharding: fsdp` divides weights, gradients, optimiser and average among the processes instead of repeating them.
    `activation_checkpointing` computes activations again in the backward instead of holding them: about a third more
    work, much less memory. `trackers` receive every row of the log.
    """

    name: str = Field(min_length=1)
    seed: int = 0
    output_dir: Path | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    mixed_precision: Literal["no", "bf16"] = "no"
    num_threads: int | None = Field(default=None, ge=1)
    gradient_accumulation: Count = 1
    sharding: Literal["none", "fsdp"] = "none"
    activation_checkpointing: bool = False
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = Field(default_factory=list)
    accept_other_data: bool = False
    export_dtype: Literal["float32", "float16", "bfloat16"] = "float16"
    data: Annotated[
        Annotated[SpritesConfig, Tag("sprites")] | Annotated[FootageConfig, Tag("footage")], Discriminator(data_kind)
    ] = SpritesConfig()
    stages: list[Stage] = Field(min_length=1)
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    ema: EmaConfig = EmaConfig()
    every: EveryConfig = EveryConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @field_validator("mixed_precision", mode="before")
    @classmethod
    def _read_no(cls, value: Any) -> Any:
        return "no" if value is False else value  # YAML 1.1 reads no as false

    @property
    def total_steps(self) -> int:
        """Optimiser steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    @property
    def run_folder(self) -> Path:
        """Where the run writes: `output_dir`, or runs/NAME."""
        return self.output_dir if self.output_dir is not None else Path("runs") / self.name

    @property
    def on_cpu(self) -> bool:
        """Whether it trains on the processor of this machine."""
        import torch

        return self.device == "cpu" or (self.device == "auto" and not torch.accelerator.is_available())
