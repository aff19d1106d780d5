"""What a run takes, estimated before: from shapes alone for every shipped recipe, tasks by their share."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vgen.errors import RequestError
from vgen.training.chain import configs_next_to, is_chain
from vgen.training.config.stages import Stage, TaskMix
from vgen.training.cost.rehearsal import MemoryEstimate
from vgen.training.cost.throughput import Kind
from vgen.training.cost.work import WorkCounter, count_work
from vgen.training.data.plan import BatchPlan
from vgen.training.estimate.dry_run import Estimate, _fill_in_times, _Rehearsal, dry_run
from vgen.training.estimate.machine import Machine
from vgen.training.objectives.base import Costs
from vgen.training.objectives.flow.flow import FlowObjective
from vgen.training.objectives.flow.tasks import TASKS
from vgen.training.recipe import load_recipe


def _stage(steps: int, **tasks: float) -> Stage:
    mix = TaskMix(**{"text": 0.0, "first": 0.0, "prefix": 0.0, "other": 0.0, **tasks})
    return Stage(steps=steps, frames={5: 1.0}, batch={5: 2}, tasks=mix)


def test_a_task_counts_by_its_share() -> None:
    objective: Any = FlowObjective.__new__(FlowObjective)
    torch.nn.Module.__init__(objective)
    objective.config = SimpleNamespace(tasks=TaskMix())
    objective.material = SimpleNamespace(tasks=TASKS)
    stages = [_stage(3, text=0.5, first=0.5), _stage(1, text=0.75, frames=0.25)]
    plan = objective.plan = BatchPlan(stages, 0)
    kind = Kind(5, None, 2)
    seconds = {"text": 2.0, "first": 4.0, "frames": 10.0}

    def measured(asked: Kind, task: str) -> tuple[float, float]:
        with objective.only_task(task):
            assert objective.task_shares(objective.plan.stages[1], 5) == {task: 1.0}
        assert objective.plan is plan, "the run's own plan is back"
        assert asked == kind
        return 0.0, seconds[task]

    timed: Any = SimpleNamespace(micro_batch=measured, optimizer=lambda: 0.5)
    recipe: Any = SimpleNamespace(stages=stages, gradient_accumulation=3, every=SimpleNamespace(validate_=0))
    run = _Rehearsal(recipe, None, plan, objective, None, {kind: {}}, Costs())  # type: ignore[arg-type]
    estimate = Estimate(MemoryEstimate(0, 0, 0, 0, 0, 0), 0, 0)
    _fill_in_times(run, timed, estimate)
    steps = 3 * (3 * 3.0 + 0.5) + (3 * 4.0 + 0.5)
    assert estimate.training == pytest.approx(steps)
    assert objective.task_shares(stages[0], 1) == {"text": 1.0}, "pictures know nothing but text"


CONFIGS = Path(__file__).parents[4] / "configs" / "train"
RECIPES = sorted(
    path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.rglob("*.yaml") if not is_chain(path)
)
REHEARSED = ("history/sprites_contours", "sprites_few_steps", "sprites_preference", "sprites", "sprites_vae_sharpen")
"""One of each kind; the others' memory is the same code, and takes seconds each."""


@pytest.fixture
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """No step is made, no clip is encoded, no tokenizer is fitted; and no earlier recipe has been trained."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a dry run works on shapes alone")

    for name in (
        "estimate.timing.MeasuredTime.micro_batch",
        "data.latents.encode_clips",
        "objectives.flow.build.sprite_tokenizer",
        "estimate.dry_run.build_parts",
    ):
        monkeypatch.setattr(f"vgen.training.{name}", refuse)
    monkeypatch.chdir(CONFIGS.parents[1])


@pytest.mark.parametrize("name", RECIPES)
def test_every_shipped_recipe_is_estimated_without_the_ones_before_it(
    name: str, nothing_runs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name not in REHEARSED:
        monkeypatch.setattr("vgen.training.estimate.dry_run.peak_bytes", lambda *_: 1 << 28)
    before = set(Path().iterdir())
    path = CONFIGS / f"{name}.yaml"
    recipe = load_recipe(path, ["device=cpu", "num_threads=1"])
    estimate = dry_run(recipe, models=configs_next_to(path))
    lines = estimate.lines()
    assert "estimated" in lines[-1] and "--measure" in lines[-1]
    assert set(estimate.steps) == {
        (length, stage.crop, stage.batch[length]) for stage in recipe.stages for length in stage.frames
    }
    assert all(0 < seconds < 1e5 for seconds in estimate.steps.values())
    assert estimate.training > 0 and estimate.peak > estimate.memory.total > 2**26
    if recipe.objective.kind == "flow":
        assert estimate.caching > 0 and estimate.validation > 0
    assert set(Path().iterdir()) == before, "nothing stays"


def test_what_no_recipe_makes_is_refused(nothing_runs: None) -> None:
    path = CONFIGS / "history" / "sprites_tasks.yaml"
    recipe = load_recipe(path, ["objective.init=elsewhere/export"])
    with pytest.raises(RequestError, match=r"objective\.init=elsewhere/export holds no model"):
        dry_run(recipe, models=configs_next_to(path))


def test_work_is_counted_and_takes_the_time_of_its_operations() -> None:
    layer = torch.nn.Linear(64, 128, bias=False)
    inputs = {"rows": torch.empty(32, 64)}

    def loss(given: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.relu(layer(given["rows"])).sum()

    work = count_work(layer, loss, inputs)
    forward = 2 * 32 * 64 * 128
    assert work.total_flops == 2 * forward  # and the weight's gradient
    assert work.traffic >= 4 * 32 * 128 * 2 * 2, "the activation and its gradient are read and written"
    now = [0.0]

    def clock() -> float:
        now[0] += 0.5
        return now[0]

    machine = Machine(torch.device("cpu"), clock=clock)
    assert machine.moving(0) == 0
    alone = machine.seconds(work) - machine.moving(work.traffic)
    assert alone == pytest.approx(1.0), "two products, of half a second by this clock"
    assert machine.seconds(work.times(3)) == pytest.approx(3 * machine.seconds(work), rel=1e-3)


def test_the_work_of_a_large_operation_is_timed_on_fewer_rows() -> None:
    with WorkCounter() as counter:
        left, right = (torch.empty(shape, device="meta") for shape in ((1 << 20, 256), (256, 256)))
        left @ right
        torch.nn.functional.conv2d(
            torch.empty(512, 32, 64, 64, device="meta"), torch.empty(32, 32, 3, 3, device="meta")
        )
    assert all(operation.flops > 1e10 for operation in counter.work.heaviest.values())
    seconds = Machine(torch.device("cpu")).seconds(counter.work)
    assert 1e-3 < seconds < 1e4
