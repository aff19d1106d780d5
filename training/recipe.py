"""Training recipes: YAML with `key=value` overrides, checked before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, ValidationError, field_validator, model_validator

from vgen.errors import RequestError
from vgen.training.config.base import Count, Strict
from vgen.training.config.data import FootageConfig, LoraConfig, data_kind
from vgen.training.config.files import apply_override, read_recipe
from vgen.training.config.stages import ShiftConfig, Stage, TaskMix
from vgen.training.objectives.distill.config import DistillObjectiveConfig
from vgen.training.objectives.preference.config import PreferenceObjectiveConfig
from vgen.training.objectives.vae.config import DenoisingConfig, GanConfig, LpipsConfig


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
    """Warm-up and decay of the learning rate, in steps; at each step of `restarts` the schedule begins anew."""

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


class SpritesConfig(Strict):
    """SpriteWorld, rendered on the fly. `emphasis` shows a motion so many times as often in training."""

    kind: Literal["sprites"] = "sprites"
    tier: int | list[int] = 1
    height: Count = 64
    width: Count = 64
    frame_rate: float = Field(default=8.0, gt=0)
    num_clips: Count = 1_000_000
    emphasis: dict[str, float] = Field(default_factory=dict)
    workers: int = Field(default=1, ge=0)


class VaeObjectiveConfig(Strict):
    """Reconstruction training of a causal video VAE. `model` holds the arguments of CausalVideoVAE.

    `inflate_before` is the step (counted from 0) before which the averaged weights, until then trained on images, are
    rearranged for clips. `train: decoder` leaves the encoder and the latent statistics as they are, so that latents,
    and transformers trained on them, keep their meaning. `square_weight` adds the squared error, which PSNR goes by, to
    the absolute one, `structure_weight` what SSIM lacks of 1. `gan` and `denoising` sharpen a decoder trained alone.
    """

    kind: Literal["vae"]
    model: dict[str, Any]
    init: Path | None = None
    train: Literal["all", "decoder"] = "all"
    inflate_before: int | None = Field(default=None, ge=0)
    square_weight: float = Field(default=0.0, ge=0)
    structure_weight: float = Field(default=0.0, ge=0)
    haar_weight: float = Field(default=0.2, ge=0)
    haar_levels: Count = 3
    kl_weight: float = Field(default=1e-6, ge=0)
    gan: GanConfig | None = None
    denoising: DenoisingConfig | None = None
    lpips: LpipsConfig | None = None
    foreground_weight: float = Field(default=9.0, ge=1)
    validation_clips: Count = 16
    validation_frames: Count = 17
    statistics_clips: Count = 256

    @model_validator(mode="after")
    def _check_trained(self) -> VaeObjectiveConfig:
        if self.train == "decoder" and (self.init is None or self.inflate_before is not None):
            raise ValueError("train='decoder' needs init=FOLDER with a trained encoder, and no inflate_before")
        for name in ("gan", "denoising"):
            if self.train == "all" and getattr(self, name) is not None:
                raise ValueError(f"{name} is for a decoder trained alone, once the encoder is done: train='decoder'")
        return self


class LatentCacheConfig(Strict):
    """Which clips are encoded once: `groups` maps num_frames to a number of clips.

    `workers` are processes that render ahead of the encoder, `batch` clips at a time, and then make batches ahead of
    the steps: for a GPU, which would wait for one process. They change no result.
    """

    groups: dict[int, Count]
    folder: Path | None = None
    batch: Count = 16
    workers: int = Field(default=0, ge=0)
    encode_dtype: Literal["float32", "bfloat16"] = "float32"


class TextEncoderConfig(Strict):
    """A small T5 encoder trained together with the transformer."""

    d_model: Count = 128
    d_kv: Count = 32
    d_ff: Count = 256
    num_layers: Count = 2
    num_heads: Count = 4
    vocabulary: int = Field(default=1024, ge=160)
    max_length: Count = 64


class FlowObjectiveConfig(Strict):
    """Flow matching of a video transformer on cached latents. `model` holds the arguments of VideoDiT.

    `explicit_attention` holds attention scores in memory: faster on a CPU while sequences are short. `compile_blocks`
    compiles the transformer's blocks (torch.compile, for all lengths at once), which needs a C++ compiler on a CPU.
    """

    kind: Literal["flow"]
    vae: Path
    model: dict[str, Any]
    text_encoder: TextEncoderConfig = TextEncoderConfig()
    latents: LatentCacheConfig
    tasks: TaskMix = TaskMix()
    init: Path | None = None
    text_drop: float = Field(default=0.1, ge=0, le=1)
    explicit_attention: bool = False
    compile_blocks: bool = False
    uniform_share: float = Field(default=0.1, ge=0, le=1)
    shift: ShiftConfig = ShiftConfig()
    shift_terminal: float | None = Field(default=None, gt=0, lt=1)
    validation_clips: Count = 64
    validation_frames: Count = 17
    sample_clips: int = Field(default=8, ge=0)
    sample_steps: Count = 30
    guidance_scale: float = Field(default=4.0, ge=0)
    defaults: dict[str, Any] = Field(default_factory=dict)


class FineTuneObjectiveConfig(Strict):
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
    text_drop: float = Field(default=0.1, ge=0, le=1)
    uniform_share: float = Field(default=0.1, ge=0, le=1)
    explicit_attention: bool = False
    gradient_checkpointing: bool = False
    base_weights: Literal["keep", "int8", "float8"] = "keep"
    offload: bool = False
    validation_samples: Count = 8
    sample_clips: int = Field(default=2, ge=0)

    @model_validator(mode="after")
    def _check_base(self) -> FineTuneObjectiveConfig:
        if self.base_weights != "keep" and self.mode != "lora":
            raise ValueError(f"base_weights={self.base_weights} freezes the weights that mode=full trains; use keep")
        if self.offload and self.mode != "lora":
            raise ValueError("offload=true keeps frozen weights on the host, and mode=full trains all; use mode=lora")
        if self.offload and self.base_weights != "keep":
            raise ValueError(f"offload=true and base_weights={self.base_weights} cannot be combined; use keep")
        return self


Objectives = Annotated[
    VaeObjectiveConfig
    | FlowObjectiveConfig
    | FineTuneObjectiveConfig
    | DistillObjectiveConfig
    | PreferenceObjectiveConfig,
    Field(discriminator="kind"),
]


class Recipe(Strict):
    """A whole training run.

    `sharding: fsdp` divides weights, gradients, optimiser and average among the processes instead of repeating them.
    `activation_checkpointing` computes activations again in the backward instead of holding them: about a third more
    work, much less memory. `trackers` are told what the log is.
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
    objective: Objectives
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

    @model_validator(mode="after")
    def _check_sharding(self) -> Recipe:
        if self.sharding == "fsdp" and self.optimizer.name == "muon":
            raise ValueError("sharding='fsdp' needs optimizer.name='adamw': muon works on whole matrices")
        if self.sharding == "fsdp" and getattr(self.objective, "inflate_before", None) is not None:
            raise ValueError("sharding='fsdp' cannot rearrange weights; train the pictures first, then use init")
        return self

    @model_validator(mode="after")
    def _check_lengths(self) -> Recipe:
        if isinstance(self.objective, DistillObjectiveConfig | PreferenceObjectiveConfig):
            made = self.objective.lengths
            for number, stage in enumerate(self.stages):
                for length in sorted(set(stage.frames) - set(made)):
                    raise ValueError(
                        f"stages.{number}.frames has num_frames={length}, and the objective makes clips of "
                        f"{', '.join(map(str, made))}: make these, too, or leave them out"
                    )
        return self

    @property
    def total_steps(self) -> int:
        """Optimiser steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    @property
    def run_folder(self) -> Path:
        """Where the run writes: `output_dir`, or runs/NAME."""
        return self.output_dir if self.output_dir is not None else Path("runs") / self.name


def load_recipe(path: str | Path, overrides: list[str] | None = None, folder: Path | None = None) -> Recipe:
    """Read a recipe, with what it extends, and apply overrides.

    Args:
        path: a YAML file; see `recipe_files.read_recipe`.
        overrides: "key.subkey=value", values read as YAML; list items by number ("stages.0.steps=10").
        folder: of the run, in place of `output_dir`.

    Raises:
        RequestError: the file is missing or not YAML, a key is unknown, a value is not allowed.
    """
    content = read_recipe(Path(path))
    for override in overrides or []:
        apply_override(content, override)
    if folder is not None:
        content["output_dir"] = str(folder)
    return check_recipe(content, path)


def check_recipe(content: Mapping[str, Any], path: str | Path) -> Recipe:
    """A recipe from its content.

    Raises:
        RequestError: a key is unknown, or a value is not allowed; names `path`.
    """
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise RequestError(f"recipe={path}: {_explain(error)}") from None


def _explain(error: ValidationError) -> str:
    parts = []
    for problem in error.errors():
        kind = problem["loc"][1:2] if problem["loc"][:1] in (("objective",), ("data",)) else ()
        field = ".".join(str(part) for part in (problem["loc"][:1] + problem["loc"][2:] if kind else problem["loc"]))
        given = "" if problem["type"] in ("missing", "extra_forbidden") else f" (given: {problem['input']!r})"
        message = "unknown key" if problem["type"] == "extra_forbidden" else problem["msg"]
        parts.append(f"{field or 'recipe'}: {message}{given}")
    return "; ".join(parts)
