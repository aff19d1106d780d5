"""What a run takes, told before: tasks count by their share, and every shape of a batch leaves something behind."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vgen.training.config_stages import Stage, TaskMix
from vgen.training.data.plan import Batch, BatchPlan, Draw
from vgen.training.memory_rehearsal import shapes_of_batches
from vgen.training.objectives.flow import FlowObjective
from vgen.training.timing import Probe


class _Texts:
    """Batches whose text is as long as one of three lengths."""

    fingerprint = "texts"

    def size(self, num_frames: int) -> int:
        return 9

    def load(self, draw: Draw) -> Batch:
        return {"latents": torch.zeros(2, 4), "input_ids": torch.zeros(2, 1 + draw.indices[0] % 3)}


def _stage(steps: int, **tasks: float) -> Stage:
    mix = TaskMix(**{"text": 0.0, "first": 0.0, "prefix": 0.0, "other": 0.0, **tasks})
    return Stage(steps=steps, frames={5: 1.0}, batch={5: 2}, tasks=mix)


def test_shapes_of_batches_are_counted() -> None:
    assert len(shapes_of_batches(BatchPlan([_stage(60, text=1.0)], 0), _Texts())) == 3
    assert len(shapes_of_batches(BatchPlan([_stage(1, text=1.0)], 0), _Texts())) == 1
    assert len(shapes_of_batches(BatchPlan([_stage(100_000, text=1.0)], 0), _Texts())) == 3


def test_a_task_counts_by_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    objective: Any = FlowObjective.__new__(FlowObjective)
    torch.nn.Module.__init__(objective)
    objective.config = SimpleNamespace(tasks=TaskMix())
    plan = objective.plan = BatchPlan([_stage(3, text=0.5, first=0.5), _stage(1, text=0.75, frames=0.25)], 0)
    parts: Any = SimpleNamespace(objective=objective)
    probe = Probe(None, parts, plan, _Texts(), lambda: 0.0)  # type: ignore[arg-type]
    seconds = {"text": 2.0, "first": 4.0, "frames": 10.0}

    def measured(kind: Any, rows: int) -> tuple[float, float]:
        (task,) = {name for name in seconds if objective.plan.stages[1].tasks.share(name) > 0}
        return 0.0, seconds[task]

    monkeypatch.setattr(probe, "_measured", measured)
    times = probe.times_by_task((5, None, 2), 2)
    assert [times(stage) for stage in plan.stages] == pytest.approx([1.5, 2.0])
    assert objective.plan is plan, "the run's own plan is back"
    assert probe.times_by_task((1, None, 2), 2)(plan.stages[0]) == 1.0, "pictures know nothing but text"
