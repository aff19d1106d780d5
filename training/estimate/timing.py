"""Seconds of micro-batches and of an optimiser's step, measured with real batches; nothing is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import mean
from typing import Any

import torch

from vgen.training.components import Parts
from vgen.training.cost.throughput import Kind, shape_key
from vgen.training.data.plan import Batch, BatchPlan, Source
from vgen.training.data.shards import ShardCache
from vgen.training.randomness import Keys
from vgen.training.recipe import Recipe

_PROBE_SECONDS = 1.0
"""Least time that a kind of micro-batch is measured for, after one to warm up."""
_LONGEST_MICRO_BATCH = 10.0
"""Seconds; where one would take longer, fewer rows are measured."""
_USUAL_UTILISATION = 0.3


class MeasuredTime:
    """Runs micro-batches and measures them.

    Args:
        recipe: of the run.
        parts: what trains; the weights move by nothing.
        plan: of the run's steps.
        source: of its batches.
        examples: a micro-batch of every kind, without content.
        clock: what seconds are read from.
    """

    def __init__(
        self,
        recipe: Recipe,
        parts: Parts,
        plan: BatchPlan,
        source: Source,
        examples: Mapping[Kind, Batch],
        clock: Callable[[], float],
    ) -> None:
        self.recipe = recipe
        self.parts = parts
        self.plan = plan
        self.source = source
        self.examples = examples
        self.clock = clock

    def micro_batch(self, kind: Kind, task: str) -> tuple[float, float]:
        """Seconds to load and to compute a micro-batch of a task."""
        rows = self._rows(kind)
        parts, source, clock = self.parts, self.source, self.clock
        device = next(parts.objective.parameters()).device
        step = _first_step(self.plan, kind)
        loading: list[float] = []
        computing: list[float] = []
        parts.objective.train()
        with parts.objective.only_task(task):
            while len(computing) < 2 or sum(computing[1:]) < _PROBE_SECONDS:
                rounds = len(computing)
                draw = self.plan.draw(step + rounds, 0, source)
                indices = [(index + rounds) % source.size(kind.num_frames) for index in range(rows)]
                began = clock()
                batch = source.load(draw._replace(num_frames=kind.num_frames, crop=kind.crop, indices=indices))
                loaded = clock()
                batch = {name: value.to(device) for name, value in batch.items()}
                loss, _ = parts.model(batch, Keys(self.recipe.seed, step + rounds))
                loss.backward()
                float(loss.detach())
                loading.append(loaded - began)
                computing.append(clock() - loaded)
        parts.optimizer.zero_grad(set_to_none=True)
        scale = kind.rows / rows
        return mean(loading) * scale, mean(computing[1:]) * scale  # the first one warms up

    def _rows(self, kind: Kind) -> int:
        """As many of a micro-batch's rows as are measured."""
        meter = self.parts.meter
        able = _USUAL_UTILISATION * (meter.peak_flops or float("inf"))
        expected = meter.flops.get(shape_key(self.examples[kind]), 0) / able
        return max(1, min(kind.rows, int(kind.rows * _LONGEST_MICRO_BATCH / max(expected, 1e-9))))

    def optimizer(self) -> float:
        """Seconds of clipping, stepping and averaging; the weights move by nothing."""
        parts, clock = self.parts, self.clock
        for group in parts.optimizer.param_groups:
            group["lr"] = 0.0
        seconds = 0.0
        for _ in range(2):  # the first one makes the optimiser's state
            for value in parts.objective.parameters():
                if value.requires_grad:
                    value.grad = torch.zeros_like(value)
            began = clock()
            torch.nn.utils.clip_grad_norm_(parts.objective.parameters(), self.recipe.optimizer.max_grad_norm)
            parts.optimizer.step()
            parts.ema.update(parts.objective, 0)
            seconds = clock() - began
        parts.optimizer.zero_grad(set_to_none=True)
        return seconds

    def caching(self, cache: ShardCache[Any], forward: Callable[[int], float]) -> float:
        """Seconds to make what a cache has not, from a few samples of each group."""
        return cache.missing_seconds(self.clock)


def _first_step(plan: BatchPlan, kind: Kind) -> int:
    """A step of the first stage that has this kind."""
    step = 0
    for stage in plan.stages:
        if stage.crop == kind.crop and stage.frames.get(kind.num_frames, 0) > 0:
            return step
        step += stage.steps
    raise AssertionError("kinds come from the plan's stages")
