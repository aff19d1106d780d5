"""Pairs of clips of one prompt, of which one is preferred, made once and kept.

A shard is a function of its place alone, so that an interrupted cache goes on where it ended. How many pairs a shard
holds depends on what its source found.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from vgen.errors import CheckpointError, RequestError
from vgen.training.control import Control
from vgen.training.data.plan import Batch, Draw
from vgen.training.data.shards import CachedBatches, Shard, ShardCache, Tensors, cut_text, read_shards
from vgen.training.objectives.preference.config import PairsConfig
from vgen.training.objectives.preference.pair_sources import ClipMaker

SHARD = 64
"""Prompts (or lines of a file) a shard."""

Pairs = Tensors
"""chosen, rejected [P, C, f, h, w] float16, normalised; prompt_embeds [P, L, D]; attention_mask bool [P, L]."""


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


class PairCache(ShardCache):
    """Pairs, made once and kept.

    Args:
        config: where they are kept, and the clips' length.
        source: makes them.
        maker: of the model that they are for.
        model_hash: names its weights.
        folder: used when the config names none.
    """

    def __init__(
        self, config: PairsConfig, source: PairSource, maker: ClipMaker, model_hash: str, folder: Path
    ) -> None:
        self.config = config
        self.source = source
        self.maker = maker
        told = f"{model_hash}|{maker.describe()}|{source.fingerprint}|{SHARD}"
        key = hashlib.sha256(told.encode()).hexdigest()[:16]
        self.folder = (config.folder if config.folder is not None else folder) / key
        self._pairs: Pairs = {}

    @property
    def fingerprint(self) -> str:
        """Changes with the model, the way of sampling and choosing, or the number of prompts."""
        return hashlib.sha256(f"{self.folder.name}|{self.source.count}".encode()).hexdigest()[:16]

    def size(self, num_frames: int) -> int:
        """Number of pairs.

        Raises:
            CheckpointError: they are of another length.
        """
        if num_frames != self.config.num_frames:
            raise CheckpointError(
                f"num_frames={num_frames} is trained on but the pairs have {self.config.num_frames}: change "
                "objective.pairs.num_frames, or the lengths of the stages."
            )
        return len(self)

    def __len__(self) -> int:
        return len(self._pairs["chosen"])

    def shards(self) -> Iterator[Shard]:
        """See ShardCache."""
        for places in self._places():
            told = f"making pairs: {places.start} of {self.source.count} prompts"
            yield Shard(self._path(places), told, partial(self._make, places))

    def load(self) -> None:
        """Read all shards; they must have been made.

        Raises:
            RequestError: no prompt gave a pair.
        """
        self._pairs = read_shards([self._path(places) for places in self._places()])
        if not len(self):
            raise RequestError(
                f"objective.pairs: none of {self.source.count} prompts gave a pair, since no prompt has right and "
                "wrong clips: raise prompts or clips, or set rendered=true."
            )

    @property
    def nbytes(self) -> int:
        """What the pairs take in memory once they are read."""
        return sum(value.nbytes for value in self._pairs.values())

    def missing(self) -> int:
        """How many places are still to be made."""
        return sum(len(places) for places in self._places() if not self._path(places).exists())

    def missing_seconds(self, clock: Callable[[], float]) -> float:
        """What making the rest will take, from one place; `clock` is what seconds are read from."""
        missing = self.missing()
        if not missing:
            return 0.0
        began = clock()
        self.source.pairs(range(1), Control(self.folder))
        return (clock() - began) * missing

    def load_blank(self) -> None:
        """Stand-ins of the right shapes that hold nothing: for a dry run, which makes no pair."""
        latents = torch.zeros(1, *self._latent_shape)
        text_encoder = self.maker.pipeline.text_encoder
        assert text_encoder is not None
        width, length = text_encoder.config.d_model, self.maker.settings.max_sequence_length
        embeds, mask = torch.zeros(1, length, width), torch.ones(1, length, dtype=torch.bool)
        self._pairs = {"chosen": latents, "rejected": latents, "prompt_embeds": embeds, "attention_mask": mask}

    def rows(self, indices: list[int]) -> Batch:
        """Pairs by index, modulo their number: as `Pairs`, float32, text cut to the longest, and "indices"."""
        rows = torch.tensor(indices) % len(self)
        embeds, mask = cut_text(self._pairs["prompt_embeds"][rows], self._pairs["attention_mask"][rows])
        return {
            "chosen": self._pairs["chosen"][rows].float(),
            "rejected": self._pairs["rejected"][rows].float(),
            "prompt_embeds": embeds,
            "attention_mask": mask,
            "indices": rows,
        }

    @property
    def _latent_shape(self) -> tuple[int, ...]:
        shape = self.maker.shape
        return (self.maker.pipeline.vae.config.latent_channels, shape.frames, shape.height, shape.width)

    def _make(self, places: range, control: Control) -> Pairs:
        texts, chosen, rejected = self.source.pairs(places, control)
        embeds, mask = self.maker.text(texts or [""])
        empty = torch.zeros(0, *self._latent_shape)
        count = len(texts)
        return {
            "chosen": (torch.stack(chosen) if count else empty).half(),
            "rejected": (torch.stack(rejected) if count else empty).half(),
            "prompt_embeds": embeds[:count],
            "attention_mask": mask[:count],
        }

    def _places(self) -> list[range]:
        """Those of each shard."""
        count = self.source.count
        return [range(begin, min(begin + SHARD, count)) for begin in range(0, count, SHARD)]

    def _path(self, places: range) -> Path:
        # Named by its end, too: the last shard of a smaller number of prompts is another one.
        return self.folder / f"{places.start:06d}-{places.stop:06d}.safetensors"


class PairBatches(CachedBatches[PairCache]):
    """The cache as a source of batches."""

    def load(self, draw: Draw) -> Batch:
        """The pairs of a draw; see `PairCache.rows`."""
        return self.cache.rows(draw.indices)
