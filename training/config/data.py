"""Parts of a recipe that say what is trained on, and the LoRA that several objectives train."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from vgen.training.config.base import Count, Share, Strict


class SpritesConfig(Strict):
    """SpriteWorld, rendered on the fly. `emphasis` shows a motion that many times as often in training."""

    kind: Literal["sprites"] = "sprites"
    tier: int | list[int] = 1
    height: Count = 64
    width: Count = 64
    frame_rate: float = Field(default=8.0, gt=0)
    num_clips: Count = 1_000_000
    emphasis: dict[str, float] = Field(default_factory=dict)
    workers: int = Field(default=1, ge=0)


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


class FootageConfig(Strict):
    """A data set of `vgen data`, as cached for one model.

    `folder` is the data set, `cache` the key of its cache, or the path of that one's index.json. `weights` says how
    often samples of a folder of the footage are drawn, relative to the others (1): 2 is as if the folder were there
    twice, 0 leaves it out.
    """

    kind: Literal["footage"]
    folder: Path
    cache: Path
    weights: dict[str, Share] = Field(default_factory=dict)

    @property
    def index_file(self) -> Path:
        """The index.json of the cache."""
        return self.cache if self.cache.suffix else self.folder / "cache" / self.cache / "index.json"


class LoraConfig(Strict):
    """A LoRA: rank, alpha (None: the rank, a scale of 1), and the layers that get one.

    `targets`: attention, blocks (attention and feed-forward of all blocks), all (every linear layer), or endings of
    layers' names, such as attn1.to_q.
    """

    rank: Count = 32
    alpha: float | None = Field(default=None, gt=0)
    targets: list[str] = Field(default=["blocks"], min_length=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)


def data_kind(value: Any) -> str:
    """The kind of `data` in a recipe; sprites if it says none."""
    kind = value.get("kind", "sprites") if isinstance(value, dict) else getattr(value, "kind", "sprites")
    return str(kind)
