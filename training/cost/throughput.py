"""How fast a run is, and how well it uses the machine."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch

from vgen.training.cost.work import count_work
from vgen.training.data.plan import RENDERED, Batch, BatchPlan, Source
from vgen.training.objectives.base import Objective


class Kind(NamedTuple):
    """Micro-batches of one shape: frames of a clip, side of the square that is cut out, rows of a process."""

    num_frames: int
    crop: int | None
    rows: int


ShapeKey = tuple[tuple[str, tuple[int, ...]], ...]
PLANAR = 4
"""Tensors of at least this many dimensions decide what a micro-batch costs; the text next to them varies."""


class Meter:
    """Samples, tokens, operations and waiting since the last reading.

    Args:
        objective: says how many tokens a batch has.
        device: trained on.
        world: number of processes, all of which do as much as this one.
        peak_flops: of this process's device, operations a second; None leaves the utilisation out.
        flops: of a micro-batch by its shapes, see `flops_by_shape`.
    """

    def __init__(
        self,
        objective: Objective,
        device: torch.device,
        world: int = 1,
        peak_flops: float | None = None,
        flops: Mapping[ShapeKey, int] | None = None,
    ) -> None:
        self.objective = objective
        self.device = device
        self.world = world
        self.peak_flops = peak_flops
        self.flops = flops or {}
        self._restart()

    def _restart(self) -> None:
        self._began = time.perf_counter()
        self._samples = self._tokens = self._done = 0
        self._waited = self._paused = 0.0
        self._known = bool(self.flops)

    def take(self, batch: Batch) -> None:
        """Count a micro-batch."""
        self._samples += batch["indices"].shape[0]
        self._tokens += self.objective.tokens(batch)
        flops = self.flops.get(shape_key(batch))
        self._known = self._known and flops is not None
        self._done += flops or 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Inside, the time counts as spent waiting for data."""
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, the time does not count: validation, checkpoints."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - began

    def read(self) -> dict[str, float]:
        """Rates since the last reading, of all processes together.

        Returns:
            samples_per_second; tokens_per_second where the objective has tokens; mfu, the share of `peak_flops` that
            the model's own operations make up; data_wait, the share of the time spent waiting for data; and
            peak_memory_gib, of this process so far.
        """
        seconds = max(1e-9, time.perf_counter() - self._began - self._paused)
        rates = {"samples_per_second": self._samples * self.world / seconds}
        if self._tokens:
            rates["tokens_per_second"] = self._tokens * self.world / seconds
        if self._known and self.peak_flops:
            rates["mfu"] = self._done / seconds / self.peak_flops
        rates["data_wait"] = self._waited / seconds
        rates["peak_memory_gib"] = peak_memory(self.device) / 2**30
        self._restart()
        return rates


def shape_key(batch: Batch) -> ShapeKey:
    """What a micro-batch's cost depends on: the shapes of its clips or latents."""
    planar = {name: value for name, value in batch.items() if value.ndim >= PLANAR and name != RENDERED}
    return tuple(sorted((name, tuple(value.shape)) for name, value in planar.items()))


def peak_memory(device: torch.device) -> int:
    """Most bytes this process has held so far: on the GPU where it trains on one, else resident in memory."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def example_batches(plan: BatchPlan, source: Source) -> dict[Kind, Batch]:
    """A micro-batch of every kind in the plan, without content."""
    found: dict[Kind, Batch] = {}
    step = 0
    for stage in plan.stages:
        for num_frames in sorted(length for length, share in stage.frames.items() if share > 0):
            kind = Kind(num_frames, stage.crop, stage.batch[num_frames] // plan.world)
            if kind not in found:
                draw = plan.draw(step, 0, source)._replace(num_frames=num_frames, indices=[0], crop=stage.crop)
                found[kind] = {
                    name: torch.empty(kind.rows, *value.shape[1:], dtype=value.dtype, device="meta")
                    for name, value in source.load(draw).items()
                }
        step += stage.steps
    return found


def flops_by_shape(objective: Objective, plan: BatchPlan, source: Source) -> dict[ShapeKey, int]:
    """Operations of every kind of micro-batch in the plan, forward and backward.

    Text counts with the length that one caption has, since captions vary from step to step.
    """
    return {
        shape_key(batch): count_work(objective, objective.rehearse, batch).total_flops
        for batch in example_batches(plan, source).values()
    }
