"""Pairs of clips of one prompt, of which one is preferred, made once and kept."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from vgen.errors import RequestError
from vgen.training.control import Control
from vgen.training.data.plan import Batch, Draw
from vgen.training.data.shards import CachedBatches, CachingCosts, ShardCache, Tensors, cut_text, rows_of
from vgen.training.objectives.preference.config import PairsConfig
from vgen.training.objectives.preference.pair_sources import ClipMaker


class PairSource(Protocol):
    """Where pairs come from: places of 0 to `count`, each with any number of them."""

    count: int

    @property
    def fingerprint(self) -> str:
        """Changes when a pair does."""
        ...

    def pairs(self, places: range, control: Control) -> tuple[list[str], list[Tensor], list[Tensor]]:
        """Prompts, and latents [C, f, h, w] of what is chosen and rejected."""
        ...

    def counted_seconds(self, costs: CachingCosts) -> float:
        """Of one place, from counted work."""
        ...


class PairCache(ShardCache[int]):
    """Pairs: "chosen" and "rejected" [P, C, f, h, w] float16, normalised, "prompt_embeds" and "attention_mask".

    Its one group, of the pairs' length, holds places of the source; how many pairs they give depends on what it finds.

    Args:
        config: where they are kept, and the clips' length.
        source: makes them.
        maker: of the model that they are for.
        model_hash: names its weights.
        folder: used when the config names none.
    """

    setting = "objective.pairs.num_frames"
    shard_size = 64
    trial = 1

    def __init__(
        self, config: PairsConfig, source: PairSource, maker: ClipMaker, model_hash: str, folder: Path
    ) -> None:
        self.config = config
        self.source = source
        self.maker = maker
        super().__init__(
            config.folder, folder, f"{model_hash}|{maker.describe()}|{source.fingerprint}|{self.shard_size}"
        )

    @property
    def groups(self) -> dict[int, int]:
        """See ShardCache."""
        return {self.config.num_frames: self.source.count}

    def length(self, group: int) -> int:
        """See ShardCache."""
        return group

    def contents(self) -> str:
        """See ShardCache."""
        return str(self.source.count)

    def size(self, num_frames: int) -> int:
        """See ShardCache: the pairs that were found."""
        super().size(num_frames)
        return len(self)

    def __len__(self) -> int:
        return len(self.loaded[self.config.num_frames]["chosen"])

    def path(self, group: int, places: range) -> Path:
        """See ShardCache; named by its end as well: the last shard of fewer prompts is another one."""
        return self.folder / f"{places.start:06d}-{places.stop:06d}.safetensors"

    def title(self, group: int) -> str:
        """See ShardCache."""
        return "making pairs of prompts"

    def make(self, group: int, places: range, control: Control) -> Tensors:
        """See ShardCache."""
        texts, chosen, rejected = self.source.pairs(places, control)
        embeds, mask = self.maker.text(texts or [""])
        empty, count = torch.zeros(0, *self._latent_shape), len(texts)
        return {
            "chosen": (torch.stack(chosen) if count else empty).half(),
            "rejected": (torch.stack(rejected) if count else empty).half(),
            "prompt_embeds": embeds[:count],
            "attention_mask": mask[:count],
        }

    def chosen(self, group: int, read: Tensors, count: int) -> Tensors:
        """See ShardCache.

        Raises:
            RequestError: no prompt gave a pair.
        """
        if not len(read["chosen"]):
            raise RequestError(
                f"objective.pairs: none of {count} prompts gave a pair, since no prompt has right and "
                "wrong clips: raise prompts or clips, or set rendered=true."
            )
        return read

    def blank(self, group: int) -> Tensors:
        """See ShardCache."""
        text_encoder, length = self.maker.pipeline.text_encoder, self.maker.settings.max_sequence_length
        assert text_encoder is not None
        latents = torch.zeros(1, *self._latent_shape, dtype=torch.float16)
        embeds, mask = torch.zeros(1, length, text_encoder.config.d_model), torch.ones(1, length, dtype=torch.bool)
        return {"chosen": latents, "rejected": latents, "prompt_embeds": embeds, "attention_mask": mask}

    def counted_seconds(self, costs: CachingCosts) -> float:
        """See ShardCache."""
        (missing,) = self.missing().values()
        return missing * self.source.counted_seconds(costs) if missing else 0.0

    def rows(self, indices: list[int]) -> Batch:
        """Pairs by index, modulo their number, float32, text cut to the longest, and "indices"."""
        found, rows = rows_of(self.loaded[self.config.num_frames], indices)
        embeds, mask = cut_text(found["prompt_embeds"], found["attention_mask"])
        latents = {name: found[name].float() for name in ("chosen", "rejected")}
        return {**latents, "prompt_embeds": embeds, "attention_mask": mask, "indices": rows}

    @property
    def _latent_shape(self) -> tuple[int, ...]:
        shape = self.maker.shape
        return (self.maker.pipeline.vae.config.latent_channels, shape.frames, shape.height, shape.width)


class PairBatches(CachedBatches[PairCache]):
    """The cache as a source of batches."""

    def load(self, draw: Draw) -> Batch:
        """The pairs of a draw; see `PairCache.rows`."""
        return self.cache.rows(draw.indices)
