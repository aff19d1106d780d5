"""Parts of a recipe that say what a stretch of a run trains on."""

from __future__ import annotations

from pydantic import Field, model_validator

from vgen.training.config.base import Count, Share, Strict


class TaskMix(Strict):
    """Shares of what is given: nothing but text, the first frame, a prefix, or something else.

    Something else is the last frame, both ends, the last frames, frames anywhere, a region, a picture of the same
    things (alone or with a prefix), or a prefix in which something else happens than the text says: each with a share
    of its own, or, where it has none, an equal part of `other`.
    """

    text: Share = 0.60
    first: Share = 0.25
    prefix: Share = 0.10
    other: Share = 0.05
    last: Share | None = None
    both_ends: Share | None = None
    suffix: Share | None = None
    frames: Share | None = None
    region: Share | None = None
    reference: Share | None = None
    turn: Share | None = None

    def share(self, task: str) -> float:
        """That of one task."""
        own = getattr(self, task)
        if own is not None:
            return float(own)
        rest = [name for name, value in self if value is None]
        return self.other / len(rest)

    @model_validator(mode="after")
    def _check(self) -> TaskMix:
        if sum(getattr(self, name) or 0 for name in type(self).model_fields) <= 0:
            raise ValueError("tasks needs at least one share above 0")
        return self


class ShiftConfig(Strict):
    """The shift mu towards noise, of training and of sampling: a line through two token counts, not clamped.

    The defaults are LTX-Video's. Latents whose content survives more noise (few tokens, much redundancy) need more.
    """

    base_shift: float = 0.95
    max_shift: float = 2.05
    base_tokens: Count = 1024
    max_tokens: Count = 4096

    @model_validator(mode="after")
    def _check(self) -> ShiftConfig:
        if self.max_tokens <= self.base_tokens:
            raise ValueError(f"max_tokens={self.max_tokens} must be above base_tokens={self.base_tokens}")
        return self


class Stage(Strict):
    """A stretch of a run with one mixture of clip lengths.

    `frames` gives each clip length its share of the steps, `batch` its batch size. `crop` cuts a square of that many
    pixels with a part of the object in it out of every clip (pixel objectives only). `tasks` and `shift` stand in for
    those of the objective while the stage lasts (flow objectives only; sampling keeps to the objective's shift).
    """

    steps: Count
    frames: dict[int, Share]
    batch: dict[int, Count]
    crop: int | None = Field(default=None, ge=8)
    tasks: TaskMix | None = None
    shift: ShiftConfig | None = None

    @model_validator(mode="after")
    def _check(self) -> Stage:
        if sum(self.frames.values()) <= 0:
            raise ValueError("frames needs at least one clip length with a share above 0")
        missing = sorted(set(self.frames) - set(self.batch))
        if missing:
            raise ValueError(f"batch has no size for num_frames={missing[0]}; give one for each key of frames")
        if min(self.frames) < 1:
            raise ValueError(f"num_frames={min(self.frames)} is not a length; use 1 or more")
        return self
