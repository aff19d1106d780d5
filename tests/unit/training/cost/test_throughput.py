"""What a run says of its speed, where else it says it, and the picture of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from vgen.errors import MediaError, OutputError, RequestError
from vgen.training.components import alone_in
from vgen.training.config.stages import Stage
from vgen.training.control import Control
from vgen.training.cost.throughput import Meter, flops_by_shape, peak_memory
from vgen.training.data.plan import Batch, BatchPlan, Draw
from vgen.training.objectives.base import Objective
from vgen.training.randomness import Keys
from vgen.training.recipe import Recipe
from vgen.training.report.log import Journal
from vgen.training.report.plot import plot_run
from vgen.training.report.trackers import check_trackers, finish_trackers, start_trackers

CPU = torch.device("cpu")


class Pixels:
    """Clips of 4 x 4 pixels."""

    fingerprint = "pixels"

    def size(self, num_frames: int) -> int:
        return 100

    def load(self, draw: Draw) -> Batch:
        count = len(draw.indices)
        return {"frames": torch.ones(count, draw.num_frames, 4, 4), "indices": torch.tensor(draw.indices)}


class Matrix(Objective):
    """One matrix product a pixel row."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4, bias=False)

    def loss(self, batch: Batch, keys: Keys) -> tuple[Tensor, dict[str, Tensor]]:
        return self.layer(batch["frames"]).square().mean(), {}

    def tokens(self, batch: Batch) -> int:
        return batch["frames"].shape[:2].numel()

    def validate(self, step: int, folder: Path, control: Control) -> dict[str, float]:
        return {}

    def finish(self, folder: Path, dtype: torch.dtype, control: Control) -> dict[str, float]:
        return {}


def _plan(world: int = 1) -> BatchPlan:
    stages = [
        Stage(steps=4, frames={1: 0.5, 3: 0.5}, batch={1: 6, 3: 2}),
        Stage(steps=1, frames={3: 1.0}, batch={3: 2}),
    ]
    return BatchPlan(stages, 0, 0, world)


def test_operations_are_counted_for_every_kind_of_batch() -> None:
    flops = flops_by_shape(Matrix(), _plan(), Pixels())
    rows = {key[0][1][0] * key[0][1][1] * 4: value for key, value in flops.items()}
    assert rows == {24: 2 * 2 * 24 * 16}  # forward, and the weight's gradient; pixels need none
    assert len(flops) == 2
    assert len(flops_by_shape(Matrix(), _plan(2), Pixels())) == 2


def test_rates_are_of_all_processes_and_leave_pauses_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("vgen.training.cost.throughput.time.perf_counter", lambda: now[0])
    objective, batch = Matrix(), Pixels().load(Draw(Keys(0, 0), 3, [1, 2]))
    flops = flops_by_shape(objective, _plan(), Pixels())
    meter = Meter(objective, CPU, world=2, peak_flops=1536.0, flops=flops)
    with meter.waiting():
        now[0] += 1.0
    meter.take(batch)
    now[0] += 3.0
    with meter.paused():
        now[0] += 50.0
    rates = meter.read()
    assert rates.pop("peak_memory_gib") == peak_memory(CPU) / 2**30
    assert rates == {"samples_per_second": 1.0, "tokens_per_second": 3.0, "mfu": 0.25, "data_wait": 0.25}
    now[0] += 1.0
    assert meter.read()["samples_per_second"] == 0.0


def test_utilisation_is_left_out_where_it_is_not_known() -> None:
    meter = Meter(Matrix(), CPU, peak_flops=1e9)
    meter.take(Pixels().load(Draw(Keys(0, 0), 3, [1])))
    assert "mfu" not in meter.read()


def test_the_peak_is_positive() -> None:
    assert peak_memory(CPU) > 2**20


def test_the_log_holds_means_of_all_processes(tmp_path: Path) -> None:
    other = {"loss": (6.0, 2), "seldom": (5.0, 1)}
    with Journal(tmp_path / "log.jsonl", 0, 4, gather=lambda own: [own, other]) as journal:
        journal.add({"loss": torch.tensor(0.0)})
        journal.flush(1, {"samples_per_second": 3.0}, learning_rate=0.5)
    row = json.loads((tmp_path / "log.jsonl").read_text())
    assert (row["loss"], row["seldom"], row["samples_per_second"], row["learning_rate"]) == (2.0, 5.0, 3.0, 0.5)


def test_tensorboard_gets_every_row(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from accelerate import Accelerator

    recipe = Recipe.model_validate(
        {
            "name": "seen", "trackers": ["tensorboard"], "objective": {"kind": "vae", "model": {}},
            "stages": [{"steps": 1, "frames": {1: 1.0}, "batch": {1: 1}}],
        }
    )  # fmt: skip
    check_trackers(list(recipe.trackers))
    accelerator = Accelerator(cpu=True, log_with=["tensorboard"], project_dir=tmp_path / "trackers")
    track = start_trackers(accelerator, recipe, 0)
    with Journal(tmp_path / "log.jsonl", 0, 4, track=track) as journal:
        for step in (1, 2):
            journal.add({"loss": torch.tensor(float(step))})
            journal.flush(step, {"samples_per_second": 3.0})
        journal.write({"step": 2, "validation/psnr": 30.0})
    finish_trackers(accelerator)
    events = event_accumulator.EventAccumulator(str(tmp_path / "trackers" / "seen")).Reload()
    assert [(point.step, point.value) for point in events.Scalars("loss")] == [(1, 1.0), (2, 2.0)]
    assert events.Scalars("validation/psnr")[0].value == 30.0


def test_a_tracker_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vgen.training.report.trackers.importlib.util.find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"pip install 'vgen\[wandb\]'"):
        check_trackers(["wandb"])


def test_one_run_a_folder(tmp_path: Path) -> None:
    with alone_in(tmp_path), pytest.raises(OutputError, match="in use by another run"), alone_in(tmp_path):
        pass
    with alone_in(tmp_path):
        pass


def _log(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir()
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 9, "lo')
    return folder


def test_the_curve_is_drawn_and_follows_the_log(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = [{"step": step, "loss": 1 / step, "learning_rate": 1e-3, "loss/sigma_0.5": 0.1} for step in range(1, 60)]
    rows.append({"step": 59, "validation/loss_at_0.5": 0.4, "validation/psnr": 30.0})
    run = _log(tmp_path / "run", rows)
    plot_run(run, tmp_path / "all.png")
    plot_run(_log(tmp_path / "short", [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]), tmp_path / "loss.png")
    pictures = [np.asarray(Image.open(tmp_path / name).convert("RGB")) for name in ("all.png", "loss.png")]
    assert pictures[0].shape[0] > 3 * pictures[1].shape[0] > 300
    assert all((picture != 255).mean() > 0.01 for picture in pictures)


def test_plots_say_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MediaError, match=r"log\.jsonl does not exist"):
        plot_run(tmp_path, tmp_path / "curve.png")
    (tmp_path / "log.jsonl").write_text("")
    with pytest.raises(MediaError, match="no rows yet"):
        plot_run(tmp_path, tmp_path / "curve.png")
    with pytest.raises(RequestError, match=r"must end in \.png"):
        plot_run(tmp_path, tmp_path / "curve.jpg")
    monkeypatch.setattr("vgen.training.report.plot.importlib.util.find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"vgen\[plot\]"):
        plot_run(tmp_path, tmp_path / "curve.png")
