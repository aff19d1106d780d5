"""Seconds of micro-batches and of an optimiser's step, measured with real batches; nothing is kept."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from statistics import mean, median

import torch

from vgen.engine.memory.allocator import heap
from vgen.training.components import Parts
from vgen.training.config.stages import Stage, TaskMix
from vgen.training.cost.throughput import shape_key
from vgen.training.data.plan import Batch, BatchPlan, Source
from vgen.training.objectives.base import Objective
from vgen.training.objectives.flow.finetune import FineTuneObjective
from vgen.training.objectives.flow.flow import FlowObjective
from vgen.training.objectives.flow.tasks import FOOTAGE_TASKS, TASKS, tasks_of
from vgen.training.randomness import Keys
from vgen.training.recipe import Recipe

Kind = tuple[int, int | None, int]
"""(num_frames, crop, batch size of a process)."""
_PROBE_SECONDS = 1.0
"""Least time that a kind of micro-batch is measured for, after one to warm up."""
_LONGEST_MICRO_BATCH = 10.0
"""Seconds; where one would take longer, fewer rows are measured."""
_USUAL_UTILISATION = 0.3


def steps_of(recipe: Recipe, kind: Kind) -> float:
    """How many steps of a run are of a kind."""
    length, crop, size = kind
    world = int(os.environ.get("WORLD_SIZE", "1"))
    own = [s for s in recipe.stages if s.crop == crop and s.batch.get(length, 0) // world == size]
    return sum(stage.steps * stage.frames.get(length, 0) / sum(stage.frames.values()) for stage in own)


def tasks_drawn(objective: Objective, plan: BatchPlan, kind: Kind) -> list[str]:
    """What a run draws besides "text", which comes first; nothing where there are no tasks."""
    if not isinstance(objective, FlowObjective | FineTuneObjective) or kind[0] == 1:
        return []
    mixes = (stage.tasks or objective.config.tasks for stage in plan.stages)
    return ["text", *sorted(tasks_of(mixes, _known(objective)) - {"text"})]


def mean_over_tasks(objective: Objective, seconds: Mapping[str, float]) -> Callable[[Stage], float]:
    """A stage's mean micro-batch in those where nothing is given, out of the seconds of each task."""
    if not isinstance(objective, FlowObjective | FineTuneObjective) or not seconds:
        return lambda stage: 1.0
    known, usual = _known(objective), objective.config.tasks

    def times(stage: Stage) -> float:
        shares = {task: (stage.tasks or usual).share(task) for task in known}
        drawn = sum(share * seconds.get(task, 0.0) for task, share in shares.items())
        return drawn / sum(shares.values()) / seconds["text"]

    return times


def _known(objective: Objective) -> tuple[str, ...]:
    return TASKS if isinstance(objective, FlowObjective) else FOOTAGE_TASKS


@contextmanager
def only_task(objective: Objective, task: str) -> Iterator[None]:
    """Inside, one task is drawn, where there are tasks."""
    if not isinstance(objective, FlowObjective | FineTuneObjective):
        yield
        return
    before = objective.plan
    mix = TaskMix(**{"text": 0.0, "first": 0.0, "prefix": 0.0, "other": 0.0, task: 1.0})
    stages = [stage.model_copy(update={"tasks": mix}) for stage in before.stages]
    objective.plan = BatchPlan(stages, before.seed, before.rank, before.world)
    try:
        yield
    finally:
        objective.plan = before


class Probe:
    """Runs micro-batches and measures them.

    Args:
        recipe: of the run.
        parts: what trains; the weights move by nothing.
        plan: of the run's steps.
        source: of its batches.
        examples: a micro-batch of every kind, without content.
        clock: what seconds are read from.

    Attributes:
        shapes: of the batches that were measured.
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
        self.shapes: set[tuple[torch.Size, ...]] = set()
        self._grown: list[float] = []

    def micro_batch(self, kind: Kind) -> tuple[float, float]:
        """Seconds to load and to compute a micro-batch where nothing is given."""
        with only_task(self.parts.objective, "text"):
            return self._measured(kind)

    def times_by_task(self, kind: Kind) -> Callable[[Stage], float]:
        """A stage's mean micro-batch in those where nothing is given, measured on one kind."""
        objective, seconds = self.parts.objective, {}
        for task in tasks_drawn(objective, self.plan, kind):
            with only_task(objective, task):
                seconds[task] = self._measured(kind)[1]
        return mean_over_tasks(objective, seconds)

    def _rows(self, kind: Kind) -> int:
        """As many of a micro-batch's rows as are measured."""
        meter = self.parts.meter
        able = _USUAL_UTILISATION * (meter.peak_flops or float("inf"))
        expected = meter.flops.get(shape_key(self.examples[kind]), 0) / able
        return max(1, min(kind[2], int(kind[2] * _LONGEST_MICRO_BATCH / max(expected, 1e-9))))

    @property
    def kept(self) -> float:
        """Bytes that libraries keep for a batch of a new shape; the median, since now and then a model is compiled."""
        return median(self._grown) if self._grown else 0.0

    def _measured(self, kind: Kind) -> tuple[float, float]:
        num_frames, crop, size = kind
        rows = self._rows(kind)
        parts, source, clock = self.parts, self.source, self.clock
        device = next(parts.objective.parameters()).device
        step = _first_step(self.plan, num_frames, crop)
        loading: list[float] = []
        computing: list[float] = []
        used: dict[tuple[torch.Size, ...], int] = {}  # bytes of the heap after the first batch of a shape
        parts.objective.train()
        while len(computing) < 2 or sum(computing[1:]) < _PROBE_SECONDS:
            rounds = len(computing)
            draw = self.plan.draw(step + rounds, 0, source)
            indices = [(index + rounds) % source.size(num_frames) for index in range(rows)]
            began = clock()
            batch = source.load(draw._replace(num_frames=num_frames, crop=crop, indices=indices))
            loaded = clock()
            batch = {name: value.to(device) for name, value in batch.items()}
            loss, _ = parts.model(batch, Keys(self.recipe.seed, step + rounds))
            loss.backward()
            float(loss.detach())
            loading.append(loaded - began)
            computing.append(clock() - loaded)
            now = heap()
            used.setdefault(tuple(value.shape for value in batch.values()), 0 if now is None else now.used)
        parts.optimizer.zero_grad(set_to_none=True)
        self.shapes |= set(used)
        if len(used) > 1:
            self._grown.append((max(used.values()) - min(used.values())) / (len(used) - 1))
        return mean(loading) * size / rows, mean(computing[1:]) * size / rows  # the first one warms up

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


def _first_step(plan: BatchPlan, num_frames: int, crop: int | None) -> int:
    """A step of the first stage that has this kind."""
    step = 0
    for stage in plan.stages:
        if stage.crop == crop and stage.frames.get(num_frames, 0) > 0:
            return step
        step += stage.steps
    raise AssertionError("kinds come from the plan's stages")
