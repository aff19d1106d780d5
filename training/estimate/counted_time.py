"""Seconds of micro-batches, of an optimiser's step and of filling a cache, from shapes alone: nothing of it is done.

Work is counted on the meta device (`vgen.training.cost.work`). What was counted once is scaled for other recipes of
the same models; kinds of batches that are few cost per frame what the nearest others do.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import torch

from vgen.models import CausalVideoVAE
from vgen.models.empty import empty_model
from vgen.training.cost.throughput import PLANAR, Kind
from vgen.training.cost.work import Work, WorkCounter, count_work
from vgen.training.data.plan import Batch, BatchPlan, Source
from vgen.training.data.shards import ShardCache
from vgen.training.estimate.machine import Machine
from vgen.training.objectives.base import Objective

_MINOR: Final = 0.1
"""Share of the steps below which a kind of batch is not counted for itself."""
_STEP_PASSES: Final = 26
"""Reads and writes of a weight's size that clipping, AdamW and the average make."""
_ENCODED: Final = 4
"""Clips that are encoded together where encoding is counted."""

_counted: dict[str, tuple[int, Work]] = {}


class CountedTime:
    """Estimates what `vgen.training.estimate.timing.MeasuredTime` measures.

    Args:
        objective: without content.
        plan: of the run's steps.
        source: of its batches.
        examples: a micro-batch of every kind, without content.
        shares: of the steps that are of each kind.
        machine: that will work.
        clock: what the seconds of loading one sample are read from.
    """

    def __init__(
        self,
        objective: Objective,
        plan: BatchPlan,
        source: Source,
        examples: dict[Kind, Batch],
        shares: dict[Kind, float],
        machine: Machine,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.objective = objective
        self.plan = plan
        self.source = source
        self.examples = examples
        self.machine = machine
        self.clock = clock
        self.forward: Callable[[int], float] = lambda num_frames: 0.0
        # A transformer's work per token hardly depends on how many there are. A VAE's does, most of all in pictures.
        costs = objective.costs()
        self._settings, by_tokens = costs.settings, costs.by_tokens
        self._major: list[Kind] = []
        pictures = set() if by_tokens else {kind for kind in examples if kind.num_frames == 1}
        for group in (pictures, set(examples) - pictures):
            most = max((shares[kind] for kind in group), default=0.0)
            least = most if by_tokens or group is pictures else min(_MINOR, most)
            self._major += [kind for kind in examples if kind in group and shares[kind] >= least]

    def micro_batch(self, kind: Kind, task: str) -> tuple[float, float]:
        """Seconds to load and to compute a micro-batch of a task."""
        if task != self.objective.plain_task:
            return 0.0, self._with_task(kind, task)
        draw = self.plan.draw(0, 0, self.source)._replace(num_frames=kind.num_frames, crop=kind.crop, indices=[0])
        loading = self.timed(lambda: self.source.load(draw)) * kind.rows
        counted = min(
            self._major,
            key=lambda other: (
                (other.num_frames == 1) != (kind.num_frames == 1),
                other.crop != kind.crop,
                abs(other.num_frames - kind.num_frames),
            ),
        )
        return loading, self.machine.seconds(self._step(counted, None)) * self._size(kind) / self._size(counted)

    def _with_task(self, kind: Kind, task: str) -> float:
        """Seconds to compute a micro-batch where something is given, and each token has a timestep of its own."""
        work = self.objective.task_work(task, kind.num_frames)
        row = sum(self.encoding(coding.vae, coding.num_frames, coding.canvas) for coding in work.encoded)
        row += 0.0 if work.rendering is None else self.timed(work.rendering)
        return self.machine.seconds(self._step(kind, 0)) * work.growth + kind.rows * row

    def optimizer(self) -> float:
        """Seconds of clipping, stepping and averaging."""
        trained = sum(value.numel() for value in self.objective.parameters() if value.requires_grad)
        return self.machine.moving(4 * _STEP_PASSES * trained)

    def caching(self, cache: ShardCache[Any], forward: Callable[[int], float]) -> float:
        """Seconds to make what a cache has not.

        Args:
            cache: of the source.
            forward: seconds of a forward of one sample of that many frames.
        """
        self.forward = forward
        return cache.counted_seconds(self)

    def timed(self, work: Callable[[], object]) -> float:
        """Seconds of `work`, by doing it."""
        began = self.clock()
        work()
        return self.clock() - began

    def encoding(self, vae: CausalVideoVAE, num_frames: int, size: tuple[int, int]) -> float:
        """Seconds to encode a clip of that many frames and pixels."""
        key = f"encode|{vae.config}|{num_frames}|{size}"
        if key not in _counted:
            model: Any = empty_model("CausalVideoVAE", vae.config)
            with torch.no_grad(), WorkCounter() as counter:
                model.encode(torch.empty(_ENCODED, 3, num_frames, *size, device="meta"))
            _counted[key] = (_ENCODED, counter.work)
        rows, work = _counted[key]
        return self.machine.seconds(work) / rows

    def _size(self, kind: Kind) -> int:
        """What a micro-batch's work is proportional to, about."""
        return self.objective.tokens(self.examples[kind]) or kind.num_frames * kind.rows

    def _step(self, kind: Kind, given: int | None) -> Work:
        """Forward and backward of a micro-batch."""
        batch = self.examples[kind]
        key = f"{given}|{described(self.objective, batch, self._settings)}"
        if key not in _counted:
            loss = lambda inputs: self.objective.rehearse(inputs, given)  # noqa: E731
            _counted[key] = (kind.rows, count_work(self.objective, loss, batch))
        rows, work = _counted[key]
        return work.times(kind.rows / rows)


def described(objective: Objective, batch: Batch, settings: str) -> str:
    """All that the work of an objective's step depends on, but for the number of rows and the length of texts."""
    clips = sorted((name, tuple(value.shape[1:])) for name, value in batch.items() if value.ndim >= PLANAR)
    parts = [(name, str(getattr(part, "config", ""))) for name, part in objective.named_children()]
    shapes = [(name, tuple(value.shape), value.requires_grad) for name, value in objective.named_parameters()]
    ways = [str(getattr(part, "gradient_checkpointing", "")) for part in objective.modules()]
    return f"{type(objective).__name__}|{settings}|{parts}|{shapes}|{ways}|{clips}"
