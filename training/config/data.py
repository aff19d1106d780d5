"""Parts of a recipe that speak of footage and LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from vgen.training.config.base import Count, Share, Strict


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
