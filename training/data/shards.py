"""What training makes once and keeps: shards of tensors, each written whole by one process and read by all.

A shard is a function of its places alone, so an interrupted or enlarged cache continues where it ended. The folder is
named after all that decides its content.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vgen.errors import CheckpointError
from vgen.io.files import part_of
from vgen.models import CausalVideoVAE
from vgen.training.control import Control

Tensors = dict[str, Tensor]
Group = TypeVar("Group")


class Shard(NamedTuple, Generic[Group]):
    """One file: where it is, which samples of which group it holds, and how making it is announced."""

    path: Path
    group: Group
    places: range
    title: str


class CachingCosts(Protocol):
    """Seconds of what fills a cache, see `ShardCache.counted_seconds`."""

    def encoding(self, vae: CausalVideoVAE, num_frames: int, size: tuple[int, int]) -> float:
        """To encode one clip of that many frames, rows and columns."""
        ...

    def forward(self, num_frames: int) -> float:
        """Of a forward of the trained model for one sample of that length."""
        ...

    def timed(self, work: Callable[[], object]) -> float:
        """Of `work`, by doing it."""
        ...


class ShardCache(ABC, Generic[Group]):
    """Samples that are made once, in groups (such as a clip length), each cut into shards.

    Args:
        own: the recipe's folder for it.
        folder: used when the recipe names none.
        identity: all that decides a sample's content but its group and its place in it.
    """

    setting: ClassVar[str]
    """Key of the recipe that says how many samples of each length there are."""
    shard_size: ClassVar[int]
    trial: int = 4
    """Samples that are made to learn what the others will take."""

    def __init__(self, own: Path | None, folder: Path, identity: str) -> None:
        key = hashlib.sha256(identity.encode()).hexdigest()[:16]
        self.folder = (own if own is not None else folder) / key
        self.loaded: dict[Group, Tensors] = {}

    @property
    @abstractmethod
    def groups(self) -> dict[Group, int]:
        """Number of samples of each group."""

    @abstractmethod
    def length(self, group: Group) -> int:
        """num_frames of a group's samples."""

    @abstractmethod
    def contents(self) -> str:
        """What the folder's name leaves open: the number of samples."""

    @abstractmethod
    def path(self, group: Group, places: range) -> Path:
        """File of a shard."""

    @abstractmethod
    def title(self, group: Group) -> str:
        """What making a group is called."""

    @abstractmethod
    def make(self, group: Group, places: range, control: Control) -> Tensors:
        """Samples by their places in a group; `control` is asked now and then whether to stop."""

    @abstractmethod
    def blank(self, group: Group) -> Tensors:
        """One sample of the right shapes that holds nothing."""

    @abstractmethod
    def counted_seconds(self, costs: CachingCosts) -> float:
        """What making the rest will take, from counted work."""

    @property
    def fingerprint(self) -> str:
        """Changes when what is kept does."""
        return hashlib.sha256(f"{self.folder.name}|{self.contents()}".encode()).hexdigest()[:16]

    def size(self, num_frames: int) -> int:
        """Number of samples of that length.

        Raises:
            CheckpointError: the recipe has none.
        """
        count = sum(count for group, count in self.groups.items() if self.length(group) == num_frames)
        if not count:
            lengths = sorted({self.length(group) for group in self.groups})
            raise CheckpointError(
                f"num_frames={num_frames} is trained on, and {self.setting} has {', '.join(map(str, lengths))}: change "
                "that, or the lengths of the stages."
            )
        return count

    def places(self, group: Group) -> list[range]:
        """Those of each shard of a group."""
        count, size = self.groups[group], self.shard_size
        return [range(begin, min(begin + size, count)) for begin in range(0, count, size)]

    def shards(self) -> list[Shard[Group]]:
        """All files, in order, whether they are there or not."""
        return [
            Shard(self.path(group, places), group, places, f"{self.title(group)}: {places.start} of {count}")
            for group, count in self.groups.items()
            for places in self.places(group)
        ]

    def missing_shards(self, process: int = 0, processes: int = 1) -> list[Shard[Group]]:
        """Those of one process's share that are not there yet, in order."""
        return [shard for shard in self.shards()[process::processes] if not shard.path.exists()]

    def missing(self) -> dict[Group, int]:
        """How many samples of each group are still to be made."""
        missing = dict.fromkeys(self.groups, 0)
        for shard in self.missing_shards():
            missing[shard.group] += len(shard.places)
        return missing

    def missing_seconds(self, clock: Callable[[], float]) -> float:
        """What making the rest will take, from a few of each group; `clock` is what seconds are read from."""
        total, control = 0.0, Control(self.folder)
        for group, missing in self.missing().items():
            if rows := min(self.trial, missing):
                began = clock()
                self.make(group, range(rows), control)
                total += (clock() - began) * missing / rows
        return total

    def fill(self, control: Control, say: Callable[[str], None], process: int = 0, processes: int = 1) -> None:
        """Make the shards that are not there yet.

        Args:
            control: asked now and then whether to stop.
            say: called with what is being done.
            process, processes: of several processes, each makes its share.
        Raises:
            StopRequested: asked to stop; finished shards stay.
        """
        for shard in self.missing_shards(process, processes):
            say(shard.title)
            write_tensors(shard.path, self.make(shard.group, shard.places, control))

    def load(self) -> None:
        """Read all shards; they must have been made."""
        for group, count in self.groups.items():
            read = [load_file(self.path(group, places)) for places in self.places(group)]
            whole = {name: torch.cat([part[name] for part in read]) for name in read[0]}
            self.loaded[group] = self.chosen(group, whole, count)

    def chosen(self, group: Group, read: Tensors, count: int) -> Tensors:
        """What of a group's shards is trained on."""
        return read

    def load_blank(self) -> None:
        """Hold what holds nothing, in the right shapes and without their memory: for a dry run."""
        for group, count in self.groups.items():
            one = self.blank(group)
            self.loaded[group] = {name: value.expand(count, *value.shape[1:]) for name, value in one.items()}

    @property
    def nbytes(self) -> int:
        """What all of it takes in memory once it is read."""
        return sum(value.nbytes for group in self.loaded.values() for value in group.values())


def write_tensors(path: Path, tensors: Tensors) -> None:
    """Write a safetensors file atomically; missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with part_of(path, overwrite=True) as part:
        save_file({name: value.contiguous().cpu() for name, value in tensors.items()}, part)


Cache = TypeVar("Cache", bound=ShardCache[Any])


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


def rows_of(tensors: Tensors, indices: Sequence[int]) -> tuple[Tensors, Tensor]:
    """Rows by index, modulo their number, and those numbers."""
    rows = torch.tensor(indices) % len(next(iter(tensors.values())))
    return {name: value[rows] for name, value in tensors.items()}, rows
