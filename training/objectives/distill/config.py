"""The part of a recipe that distils a pipeline to a few steps."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from vgen.training.config.base import Count, Strict
from vgen.training.objectives.registry import ObjectiveConfig


class TrajectoryConfig(Strict):
    """Which trajectories of the teacher are integrated once and kept.

    `text` and `first` map num_frames to a number of trajectories: from a prompt alone, and from a prompt with the first
    frame given. `substeps` is the teacher's steps from one step of the student to the next. `dtype` is what the
    teacher computes in; the states themselves are float32. `judged` learns only from those whose clip SpriteWorld's
    judge calls right, of prompts that say all that it looks for. `draft_steps` has the teacher draft every clip from a
    prompt first, from the same noise (see vgen.pipelines.passes.draft); the student learns the first frame that came of
    it along with the rest.
    """

    text: dict[int, Count] = Field(min_length=1)
    first: dict[int, Count] = Field(default_factory=dict)
    substeps: Count = 4
    batch: Count = 64
    folder: Path | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    judged: bool = False
    draft_steps: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _check(self) -> TrajectoryConfig:
        extra = sorted(set(self.first) - set(self.text))
        if extra:
            raise ValueError(f"first has num_frames={extra[0]}, which text has not; add it there")
        if 1 in self.first:
            raise ValueError("first has num_frames=1, and a picture with its only frame given leaves nothing to make")
        return self


class DistillObjectiveConfig(ObjectiveConfig):
    """Segment-velocity distillation of a model to `num_steps` plain Euler steps without guidance.

    `teacher` is a pipeline folder or a model's name, `guidance_scale` the teacher's (left out: the folder's default).
    Prompts are SpriteWorld's captions of the recipe's data, or the lines of the text file `prompts`. `train: lora`
    trains adapters of `rank` and `alpha`; the export then holds them apart and merged. `explicit_attention` and
    `compile_blocks` as in flow objectives. `own_states` is the share of batches that begin a segment where the student
    itself gets to from the noise, and not where the teacher was: it learns to mend its own errors. `error_power` is the
    power p of each clip's error e that divides it: 0 is the squared error, with 1 all count alike, however hard.
    """

    kind: Literal["distill"]
    teacher: str
    num_steps: Count = 4
    guidance_scale: float | None = Field(default=None, ge=0)
    trajectories: TrajectoryConfig
    prompts: Path | None = None
    train: Literal["full", "lora"] = "full"
    rank: Count = 32
    alpha: float | None = Field(default=None, gt=0)
    own_states: float = Field(default=0.0, ge=0, le=1)
    error_power: float = Field(default=0.0, ge=0, le=1)
    explicit_attention: bool = False
    compile_blocks: bool = False
    validation_clips: Count = 32
    sample_clips: int = Field(default=8, ge=0)

    @property
    def lengths(self) -> list[int]:
        """num_frames of the clips that there are to learn from."""
        return sorted(self.trajectories.text)

    @model_validator(mode="after")
    def _check(self) -> DistillObjectiveConfig:
        if self.prompts is not None and self.trajectories.first:
            raise ValueError("trajectories.first takes its frames from SpriteWorld and does not go with a prompts file")
        if self.prompts is not None and self.trajectories.judged:
            raise ValueError("trajectories.judged knows what SpriteWorld's prompts ask for and no prompts file's")
        return self
