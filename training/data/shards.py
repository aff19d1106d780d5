"""What training makes once and keeps: shards of tensors, each written whole by one process and read by all.

An interrupted cache goes on where it ended; so does one that is enlarged.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vgen.io.files import part_of
from vgen.training.control import Control

Tensors = dict[str, Tensor]


class Shard(NamedTuple):
    """One file: where it lies, what making it is called, and what makes it (asking now and then whether to stop)."""

    path: Path
    told: str
    make: Callable[[Control], Tensors]


class ShardCache(ABC):
    """Tensors that are made once: subclasses say in which files, and what becomes of them."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Changes when what is kept does."""

    @abstractmethod
    def size(self, num_frames: int) -> int:
        """Number of samples of that length."""

    @abstractmethod
    def shards(self) -> Iterable[Shard]:
        """All files, in order, whether they are there or not."""

    @abstractmethod
    def load(self) -> None:
        """Read all shards; they must have been made."""

    @abstractmethod
    def load_blank(self) -> None:
        """Hold stand-ins of the right shapes: for a dry run, which makes nothing."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """What all of it takes in memory once it is read."""

    @abstractmethod
    def missing_seconds(self, clock: Callable[[], float]) -> float:
        """What making the rest will take, from a small trial; `clock` is what seconds are read from."""

    def missing_shards(self, process: int = 0, processes: int = 1) -> list[Shard]:
        """Those of one process's share that are not there yet, in order."""
        return [shard for shard in list(self.shards())[process::processes] if not shard.path.exists()]

    def encode_missing(
        self, control: Control, say: Callable[[str], None], process: int = 0, processes: int = 1
    ) -> None:
        """Make the shards that are not there yet.

        Args:
            control: asked now and then whether to stop.
            say: called with what is being done.
            process, processes: of several processes, each makes its share.
        Raises:
            StopRequested: asked to stop; finished shards stay.
        """
        for shard in self.missing_shards(process, processes):
            say(shard.told)
            shard.path.parent.mkdir(parents=True, exist_ok=True)
            made = {name: value.contiguous() for name, value in shard.make(control).items()}
            with part_of(shard.path, overwrite=True) as part:
                save_file(made, part)


def read_shards(paths: Sequence[Path]) -> Tensors:
    """What lies in files of one kind, joined along the first axis."""
    read = [load_file(path) for path in paths]
    return {name: torch.cat([part[name] for part in read]) for name in read[0]}


Cache = TypeVar("Cache", bound=ShardCache)


class CachedBatches(Generic[Cache]):
    """A cache as a source of batches; subclasses load what a draw asks for.

    Args:
        cache: filled.
    """

    def __init__(self, cache: Cache) -> None:
        self.cache = cache

    @property
    def fingerprint(self) -> str:
        """That of the cache."""
        return self.cache.fingerprint

    def size(self, num_frames: int) -> int:
        """Number of samples of that length."""
        return self.cache.size(num_frames)


def cut_text(embeds: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Text embeddings [B, L, D] and mask [B, L] without the padding that all rows share."""
    length = int(mask.any(dim=0).nonzero().max()) + 1
    return embeds[:, :length].float(), mask[:, :length]
