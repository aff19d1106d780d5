"""Which clip length and which samples each step gets: a pure function of (seed, step, micro-step).

The batch of a recipe is the whole one: it is drawn once and split over the processes.
"""

from __future__ import annotations

import bisect
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Final, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vgen.errors import RequestError
from vgen.training.config.stages import Stage
from vgen.training.randomness import Keys, generator

Batch = dict[str, Tensor]

RENDERED: Final = "rendered"
"""Key of the clips that an objective had rendered for the step, see `Prepare`."""

PREFETCHED: Final = 4
"""Batches that each worker makes ahead."""


class Draw(NamedTuple):
    """What one micro-step trains on."""

    keys: Keys
    num_frames: int
    indices: list[int]
    crop: int | None = None


Prepare = Callable[[Batch, Keys], Batch]
"""Adds to a batch what an objective draws or renders for it on the CPU: a function of both arguments alone."""


class Source(Protocol):
    """A data set of clips, addressed by index."""

    @property
    def fingerprint(self) -> str:
        """Changes whenever a sample's content changes."""
        ...

    def size(self, num_frames: int) -> int:
        """Number of different samples of that length."""
        ...

    def load(self, draw: Draw) -> Batch:
        """The samples of `draw`, stacked."""
        ...


def workers_of(source: Source) -> int:
    """Processes that load ahead, where a source says so; no more than there are processors."""
    return min(int(getattr(source, "workers", 0)), os.cpu_count() or 1)


@runtime_checkable
class ChoosingSource(Source, Protocol):
    """A source that says itself which of its samples go together."""

    def choose(self, num_frames: int, count: int, generator: torch.Generator) -> list[int]:
        """Indices of `count` samples of that length: a function of the generator alone."""
        ...


class BatchPlan:
    """Clip length and sample indices of every step of a recipe's stages.

    All processes agree on the length and the samples of a step, drawn with replacement; process `rank` of `world` takes
    its part.

    Raises:
        RequestError: a batch cannot be split evenly.
    """

    def __init__(self, stages: Sequence[Stage], seed: int, rank: int = 0, world: int = 1) -> None:
        self.stages = list(stages)
        self.seed = seed
        self.rank = rank
        self.world = world
        for number, stage in enumerate(stages):
            for num_frames, batch in stage.batch.items():
                if batch % world:
                    raise RequestError(
                        f"stages.{number}.batch.{num_frames}={batch} cannot be split over {world} processes: it is the "
                        f"whole batch and must divide by {world}; use {batch + world - batch % world}."
                    )
        self._ends = list(accumulate(stage.steps for stage in stages))

    @property
    def total_steps(self) -> int:
        """Optimiser steps of all stages."""
        return self._ends[-1]

    def stage(self, step: int) -> Stage:
        """The stage that `step` (counted from 0) belongs to."""
        return self.stages[min(bisect.bisect_right(self._ends, step), len(self.stages) - 1)]

    def draw(self, step: int, micro: int, source: Source) -> Draw:
        """Clip length and indices of a micro-step."""
        stage = self.stage(step)
        lengths = sorted(length for length, share in stage.frames.items() if share > 0)
        shares = torch.tensor([stage.frames[length] for length in lengths], dtype=torch.float64)
        chosen = torch.multinomial(shares, 1, generator=generator(self.seed, "length", step))
        num_frames = lengths[int(chosen)]
        keys = Keys(self.seed, step, micro, self.rank, self.world)
        share = stage.batch[num_frames] // self.world
        if isinstance(source, ChoosingSource):
            order = source.choose(num_frames, stage.batch[num_frames], keys.generator("order"))
            mine = order[keys.first_row(share) : keys.first_row(share) + share]
            return Draw(keys, num_frames, mine, stage.crop)
        count = source.size(num_frames)
        indices = keys.rows("order", share, lambda rows, drawn: torch.randint(count, (rows,), generator=drawn))
        return Draw(keys, num_frames, indices.tolist(), stage.crop)


class StepDataset(Dataset[Batch]):
    """Batches addressed by micro-step number, so that workers can render ahead without changing anything."""

    def __init__(self, plan: BatchPlan, source: Source, accumulation: int, prepare: Prepare | None = None) -> None:
        self.plan = plan
        self.source = source
        self.accumulation = accumulation
        self.prepare = prepare

    def __len__(self) -> int:
        return self.plan.total_steps * self.accumulation

    def __getitem__(self, index: int) -> Batch:
        step, micro = divmod(index, self.accumulation)
        draw = self.plan.draw(step, micro, self.source)
        batch = self.source.load(draw)
        return self.prepare(batch, draw.keys) if self.prepare else batch


def batches(
    plan: BatchPlan,
    source: Source,
    start_step: int,
    accumulation: int,
    workers: int,
    prepare: Prepare | None = None,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """All micro-batches from `start_step` on, in order.

    Args:
        plan, source: what each step gets, and from where.
        start_step: first optimiser step.
        accumulation: micro-batches per step.
        workers: processes that load ahead; 0 loads in the calling process.
        prepare: of the objective; run by the workers, too.
        pin_memory: put batches where a GPU can fetch them while it computes.
    """
    dataset = StepDataset(plan, source, accumulation, prepare)
    numbers = range(start_step * accumulation, len(dataset))
    return iter(
        DataLoader(
            dataset,
            batch_size=None,
            sampler=numbers,
            num_workers=workers,
            prefetch_factor=PREFETCHED if workers else None,
            worker_init_fn=leave_signals_to_the_parent,
            pin_memory=pin_memory,
        )
    )


def leave_signals_to_the_parent(worker: int) -> None:
    """A SIGTERM to the whole process group must not end a worker before the run has saved its checkpoint."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
