"""The part of a recipe that tunes a finished model on preferences."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from vgen.training.config.base import Count, Strict
from vgen.training.config.data import LoraConfig
from vgen.training.objectives.registry import ObjectiveConfig


class PairsConfig(Strict):
    """Pairs of clips of one prompt, of which the first is preferred.

    Without `file` the model itself makes them: `clips` of each of `prompts` prompts of SpriteWorld, which its judge
    calls right or wrong. `num_inference_steps` and `guidance_scale` are of that sampling (left out: the model's own),
    `dtype` is what it computes in. `rendered` pairs wrong clips with the data set's own where none of their prompt is
    right. `file` names JSON lines {"prompt", "chosen", "rejected"} with paths of clips, relative to the file.
    """

    num_frames: Count = 17
    file: Path | None = None
    prompts: Count = 1024
    clips: int = Field(default=4, ge=2)
    num_inference_steps: Count | None = None
    guidance_scale: float | None = Field(default=None, ge=0)
    rendered: bool = False
    batch: Count = 32
    folder: Path | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"

    @model_validator(mode="after")
    def _check(self) -> PairsConfig:
        if self.file is not None and self.rendered:
            raise ValueError("rendered=true takes clips of SpriteWorld and does not go with a file of pairs")
        return self


class PreferenceObjectiveConfig(ObjectiveConfig):
    """Flow-DPO: a finished model is moved towards the preferred clip of each pair, and away from the other.

    `model` is a pipeline folder or a model's name, and the reference that is not moved. `beta` says how firmly the
    model is held to it (small: loosely); errors are means over latents, so it is in the hundreds or thousands.
    `flow_weight` adds that much of the preferred clips' own flow-matching loss. `train: lora` trains a LoRA, whose
    absence is the reference; `full` keeps a frozen copy.
    """

    kind: Literal["preference"]
    model: str
    pairs: PairsConfig
    beta: float = Field(default=1000.0, gt=0)
    flow_weight: float = Field(default=0.0, ge=0)
    train: Literal["full", "lora"] = "full"
    lora: LoraConfig = LoraConfig()
    uniform_share: float = Field(default=0.1, ge=0, le=1)
    explicit_attention: bool = False
    compile_blocks: bool = False
    validation_prompts: Count = 32
    sample_clips: int = Field(default=8, ge=0)

    @property
    def lengths(self) -> list[int]:
        """num_frames of the clips that there are to learn from."""
        return [self.pairs.num_frames]
