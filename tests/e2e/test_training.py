"""Training end to end with tiny models: resume is exact, damage and NaN are survived, what comes out generates."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from vgen.errors import CheckpointError, NonFiniteError, VgenError
from vgen.training.checkpoint.store import CheckpointStore, TrainingState
from vgen.training.estimate.dry_run import dry_run
from vgen.training.objectives.vae.vae import VaeObjective
from vgen.training.recipe import load_recipe
from vgen.training.run import run_recipe

WEIGHTS = "diffusion_pytorch_model.safetensors"
TINY: dict[str, Any] = json.loads((Path(__file__).parents[1] / "tiny_models.json").read_text())
COMMON: dict[str, Any] = {
    "num_threads": 1,
    "data": {"tier": 1, "height": 16, "width": 16, "workers": 0},
    "every": {"log": 1, "checkpoint": 2, "validate": 0},
    "checkpoint": {"keep": 3},
}
VAE_RECIPE: dict[str, Any] = {
    **COMMON,
    "name": "tiny_vae",
    "objective": {
        "kind": "vae", "model": TINY["vae"], "validation_clips": 2, "validation_frames": 5, "statistics_clips": 4,
    },
    "gradient_accumulation": 2,
    "stages": [
        {"steps": 3, "frames": {1: 1.0}, "batch": {1: 2}},
        {"steps": 3, "frames": {1: 0.5, 5: 0.5}, "batch": {1: 2, 5: 1}},
    ],
}  # fmt: skip


def _recipe(folder: Path, content: dict[str, Any]) -> Path:
    path = folder / f"{content['name']}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def _flow_recipe(vae: Path) -> dict[str, Any]:
    return {
        **COMMON,
        "name": "tiny_flow",
        "objective": {**TINY["flow_objective"], "vae": str(vae)},
        "optimizer": {"name": "muon", "lr": 1e-3},
        "stages": [{"steps": 6, "frames": {1: 0.3, 5: 0.7}, "batch": {1: 3, 5: 2}}],
    }  # fmt: skip


@pytest.fixture(scope="module")
def small_shards() -> Any:
    """Shards of eight clips, so that a cache is encoded in no time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vgen.training.data.latents.LatentCache.shard_size", 8)
        patch.setattr("vgen.training.data.tokenizer._CORPUS_CAPTIONS", 300)
        yield


@pytest.fixture(scope="module")
def vae_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished VAE run."""
    root = tmp_path_factory.mktemp("vae")
    return run_recipe(_recipe(root, VAE_RECIPE), [f"output_dir={root / 'run'}"])


@pytest.fixture(scope="module")
def flow_run(tmp_path_factory: pytest.TempPathFactory, vae_run: Path, small_shards: Any) -> Path:
    """A finished transformer run on that VAE."""
    root = tmp_path_factory.mktemp("flow")
    path = _recipe(root, _flow_recipe(vae_run / "export"))
    return run_recipe(path, [f"output_dir={root / 'run'}", "every.validate=6"])


def test_a_decoder_trained_alone_keeps_the_meaning_of_latents(vae_run: Path, tmp_path: Path) -> None:
    before = vae_run / "export"
    changes = [f"output_dir={tmp_path / 'run'}", f"objective.init={before}", "objective.train=decoder"]
    run = run_recipe(_recipe(tmp_path, VAE_RECIPE), [*changes, "stages=[{steps: 2, frames: {5: 1.0}, batch: {5: 1}}]"])
    old, new = (load_file(folder / WEIGHTS) for folder in (before, run / "export"))
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed
    assert all(name.startswith("decoder.") for name in changed)
    assert str(tmp_path.parent) not in (run / "export" / "config.json").read_text(), "where it began is nobody's matter"
    with pytest.raises(VgenError, match="needs init=FOLDER"):
        run_recipe(_recipe(tmp_path, VAE_RECIPE), [f"output_dir={tmp_path / 'other'}", "objective.train=decoder"])


def _load(run: Path, step: int) -> TrainingState:
    return CheckpointStore(run / "checkpoints").load(run / "checkpoints" / f"step-{step:08d}")


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(_same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(_same, first, second))
    return first == second


def _assert_same_end(first: Path, second: Path, step: int = 6) -> None:
    one, two = _load(first, step), _load(second, step)
    assert _same(one.model, two.model)
    assert _same(one.ema, two.ema)
    assert _same(one.optimizer, two.optimizer)


def _cut_back(run: Path, copy: Path, step: int) -> Path:
    """A copy of a run as it was when it had done `step` steps."""
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "export")
    for path in (copy / "checkpoints").iterdir():
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)
    return copy


def test_resuming_equals_not_stopping(vae_run: Path, tmp_path: Path) -> None:
    start = _load(vae_run, 2)
    assert not _same(start.model, _load(vae_run, 6).model)
    copy = _cut_back(vae_run, tmp_path / "run", 2)
    run_recipe(_recipe(tmp_path, VAE_RECIPE), [f"output_dir={copy}", "data.workers=1"])
    _assert_same_end(vae_run, copy)
    steps = [yaml.safe_load(line)["step"] for line in (copy / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_resuming_a_transformer_equals_not_stopping(flow_run: Path, vae_run: Path, tmp_path: Path) -> None:
    copy = _cut_back(flow_run, tmp_path / "run", 4)
    path = _recipe(tmp_path, _flow_recipe(vae_run / "export"))
    run_recipe(path, [f"output_dir={copy}", "objective.latents.workers=2"])  # which work ahead, and change nothing
    _assert_same_end(flow_run, copy)


def test_another_decoder_goes_with_the_same_transformer(flow_run: Path, vae_run: Path, tmp_path: Path) -> None:
    """Exporting again encodes nothing, and what names latents is the encoder."""
    decoder = tmp_path / "vae"
    shutil.copytree(vae_run / "export", decoder)
    weights = load_file(decoder / WEIGHTS)
    name = next(name for name in weights if name.startswith("decoder."))
    save_file({**weights, name: weights[name] + 1}, decoder / WEIGHTS)
    copy = _cut_back(flow_run, tmp_path / "run", 6)
    shutil.rmtree(copy / "latents")
    run_recipe(_recipe(tmp_path, _flow_recipe(decoder)), [f"output_dir={copy}"], export_only=True)
    assert not (copy / "latents").exists()
    made, before = copy / "export", flow_run / "export"
    assert torch.equal(load_file(made / "vae" / WEIGHTS)[name], (weights[name] + 1).half())
    assert _same(load_file(made / "transformer" / WEIGHTS), load_file(before / "transformer" / WEIGHTS))


def test_a_stop_file_stops_and_the_next_start_goes_on(vae_run: Path, tmp_path: Path) -> None:
    path, run = _recipe(tmp_path, VAE_RECIPE), tmp_path / "run"
    run.mkdir()
    (run / "stop").touch()
    run_recipe(path, [f"output_dir={run}"])
    assert not (run / "checkpoints").exists()  # stopped between the micro-batches of the first step: nothing to keep
    assert not (run / "stop").exists() and not (run / "export").exists()
    run_recipe(path, [f"output_dir={run}"])
    assert (run / "export" / "config.json").is_file()
    _assert_same_end(vae_run, run)


def test_a_truncated_checkpoint_is_passed_over(vae_run: Path, tmp_path: Path) -> None:
    copy = _cut_back(vae_run, tmp_path / "run", 4)
    file = copy / "checkpoints" / "step-00000004" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    run_recipe(_recipe(tmp_path, VAE_RECIPE), [f"output_dir={copy}"])
    _assert_same_end(vae_run, copy)


@pytest.mark.slow
def test_kill_and_resume_equals_not_stopping(vae_run: Path, tmp_path: Path) -> None:
    path, run = _recipe(tmp_path, VAE_RECIPE), tmp_path / "run"
    command = [sys.executable, "-m", "vgen.training.run", str(path), f"output_dir={run}"]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 300
    while not (run / "checkpoints" / "step-00000002").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() in (-signal.SIGKILL, 0)
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    _assert_same_end(vae_run, run)


def test_frames_and_regions_are_encoded_when_they_are_drawn(vae_run: Path, small_shards: Any, tmp_path: Path) -> None:
    content = _flow_recipe(vae_run / "export")
    only = {"text": 0.0, "first": 0.0, "prefix": 0.0, "other": 1.0}
    content["stages"] = [{"steps": 40, "frames": {5: 1.0}, "batch": {5: 2}, "tasks": only}]
    run_recipe(_recipe(tmp_path, content), [f"output_dir={tmp_path / 'run'}"])
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    seen = {name.removeprefix("loss/") for row in rows for name in row if name.startswith("loss/")}
    assert {"suffix", "frames", "region"} <= seen
    assert all(row["loss"] > 0 for row in rows if "loss" in row)


def test_a_stage_may_have_tasks_and_a_shift_of_its_own(vae_run: Path, small_shards: Any, tmp_path: Path) -> None:
    content = _flow_recipe(vae_run / "export")
    stage = {"steps": 2, "frames": {5: 1.0}, "batch": {5: 2}}
    only = {"text": 0.0, "first": 0.0, "prefix": 0.0, "other": 0.0}
    content["stages"] = [
        {**stage, "tasks": {**only, "text": 1.0}},
        {**stage, "tasks": {**only, "first": 1.0}, "shift": {"base_shift": 9.0, "max_shift": 9.1}},
    ]
    content["objective"]["uniform_share"] = 0.0
    run_recipe(_recipe(tmp_path, content), [f"output_dir={tmp_path / 'run'}"])
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    tasks = [sorted(name[5:] for name in row if name in ("loss/text", "loss/first")) for row in rows if "loss" in row]
    assert tasks == [["text"], ["text"], ["first"], ["first"]]
    late = [name for row in rows[2:4] for name in row if name.startswith("loss/sigma")]
    assert set(late) == {"loss/sigma_0.75"}  # so far shifted, hardly anything lies below


def test_other_data_is_refused(vae_run: Path, tmp_path: Path) -> None:
    copy = _cut_back(vae_run, tmp_path / "run", 2)
    path = _recipe(tmp_path, VAE_RECIPE)
    with pytest.raises(CheckpointError, match="trained on other data"):
        run_recipe(path, [f"output_dir={copy}", "data.tier=2"])


def test_a_fresh_start_refuses_a_used_folder(vae_run: Path, tmp_path: Path) -> None:
    with pytest.raises(VgenError, match="already holds step-00000006"):
        run_recipe(_recipe(tmp_path, VAE_RECIPE), [f"output_dir={vae_run}"], resume=False)


def test_nan_stops_before_the_step_and_leaves_a_dump(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = VaeObjective.loss

    def poisoned(self: VaeObjective, batch: Any, keys: Any) -> Any:
        value, logs = loss(self, batch, keys)
        return (value * float("nan") if keys.step == 3 else value), logs

    monkeypatch.setattr(VaeObjective, "loss", poisoned)
    run = tmp_path / "run"
    with pytest.raises(NonFiniteError, match="step=3: loss=nan"):
        run_recipe(_recipe(tmp_path, VAE_RECIPE), [f"output_dir={run}"])
    dump = json.loads((run / "nonfinite-step-00000003" / "dump.json").read_text())
    assert [item["micro"] for item in dump["micro_batches"]] == [0, 1]
    assert all(item["indices"] for item in dump["micro_batches"])
    newest = CheckpointStore(run / "checkpoints").newest()
    assert newest is not None
    state = CheckpointStore(run / "checkpoints").load(newest)
    assert state.step == 2
    assert all(bool(value.isfinite().all()) for value in state.model.values())


def test_the_exported_vae_knows_its_latents(vae_run: Path) -> None:
    from vgen.models import CausalVideoVAE

    vae = CausalVideoVAE.from_pretrained(vae_run / "export")
    assert vae.latents_std.min() > 0
    assert not torch.equal(vae.latents_std, torch.ones_like(vae.latents_std))


def test_the_export_holds_the_average_and_not_the_last_weights(vae_run: Path) -> None:
    from safetensors.torch import load_file

    state = _load(vae_run, 6)
    exported = load_file(vae_run / "export" / "diffusion_pytorch_model.safetensors")
    averages = {name.removeprefix("vae."): value for name, value in state.ema.items()}
    assert averages and all(torch.equal(exported[name], value.to(exported[name])) for name, value in averages.items())
    assert any(not torch.equal(value, state.model[f"vae.{name}"]) for name, value in averages.items())


def test_the_exported_pipeline_generates(flow_run: Path, tmp_path: Path) -> None:
    from vgen.pipelines import ImageToVideoPipeline, TextToVideoPipeline

    assert (flow_run / "samples" / "step-00000006.png").is_file()
    rows = [yaml.safe_load(line) for line in (flow_run / "log.jsonl").read_text().splitlines()]
    assert any("validation/loss_at_0.5" in row for row in rows)
    pipeline = TextToVideoPipeline.from_pretrained(flow_run / "export")
    pipeline.set_progress_bar_config(disable=True)
    assert {pipeline.transformer.dtype, pipeline.vae.dtype, pipeline.text_encoder.dtype} == {torch.float32}
    stated = pipeline.config.trained
    assert (stated["height"], stated["width"], stated["num_frames"]) == ([16, 16], [16, 16], [1, 5])
    assert {"circle", "zigzag"} & {*stated["words"].split()} == {"circle"}, "the recipe's tier is 1"
    frames = pipeline("a red circle moves left", output_type="np", generator=torch.Generator().manual_seed(0)).frames
    assert frames.shape == (1, 5, 16, 16, 3)
    assert np.isfinite(frames).all()
    animate = ImageToVideoPipeline(**pipeline.components)
    animate.set_progress_bar_config(disable=True)
    image = np.full((16, 16, 3), 90, dtype=np.uint8)
    assert animate(image=image, prompt="", output_type="np").frames.shape == (1, 5, 16, 16, 3)


def test_an_interrupted_run_can_be_exported(vae_run: Path, tmp_path: Path) -> None:
    copy = _cut_back(vae_run, tmp_path / "run", 4)
    run_recipe(_recipe(tmp_path, VAE_RECIPE), [f"output_dir={copy}"], export_only=True)
    assert (copy / "export" / "config.json").is_file()
    assert max(path.name for path in (copy / "checkpoints").iterdir()) == "step-00000004"


def test_the_command_refuses_a_wrong_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from vgen.cli import main

    path = _recipe(tmp_path, VAE_RECIPE)
    with pytest.raises(SystemExit) as ended:
        main(["train", "run", str(path), f"output_dir={tmp_path / 'run'}", "stages.0.steps=0"])
    assert ended.value.code == 2
    assert "stages.0.steps" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def _command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    from vgen.cli import main

    with pytest.raises(SystemExit) as ended:
        main(arguments)
    printed = capsys.readouterr()
    return int(ended.value.code or 0), printed.out, printed.err


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vae", "flow"])
def test_a_dry_run_tells_memory_and_time_and_leaves_nothing(
    vae_run: Path, small_shards: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    content = VAE_RECIPE if kind == "vae" else _flow_recipe(vae_run / "export")
    path, run = _recipe(tmp_path, content), tmp_path / "run"
    changes = [f"output_dir={run}", "every.validate=3"]
    code, out, _ = _command(["train", "run", str(path), "--dry-run", *changes], capsys)
    assert code == 0 and not run.exists()
    assert "--measure" in out
    estimate = dry_run(load_recipe(path, changes), measure=True)
    assert not any("--measure" in line for line in estimate.lines())
    weights = sum(value.numel() for value in _load(vae_run, 6).model.values()) if kind == "vae" else 0
    assert "memory" in out and "validation" in out and ("encoding latents" in out) == (kind == "flow")
    assert set(estimate.steps) == ({(1, None, 2), (5, None, 1)} if kind == "vae" else {(1, None, 3), (5, None, 2)})
    held = estimate.memory
    assert held.weights == held.gradients == held.ema
    if kind == "vae":
        assert held.optimizer == 2 * held.weights
    else:  # muon has one moment where adamw has two
        assert held.weights < held.optimizer < 2 * held.weights
    assert not weights or held.weights == pytest.approx(4 * weights, rel=0.02)
    seconds = {kind[0]: value for kind, value in estimate.steps.items()}
    shares = {1: 4.5, 5: 1.5} if kind == "vae" else {1: 1.8, 5: 4.2}  # steps of each length
    assert estimate.training == pytest.approx(sum(shares[length] * seconds[length] for length in shares), rel=1e-6)
    assert estimate.seconds > estimate.training > 0


def test_the_curve_of_a_run_is_drawn(vae_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    target = tmp_path / "curve.png"
    assert _command(["train", "plot", str(vae_run), "-o", str(target)], capsys)[0] == 0
    assert target.stat().st_size > 5000
    code, _, err = _command(["train", "plot", str(vae_run), "-o", str(target)], capsys)
    assert code == 2 and "exists already" in err
    code, _, err = _command(["train", "plot", str(tmp_path), "-o", str(tmp_path / "other.png")], capsys)
    assert code == 2 and "log.jsonl does not exist" in err


def test_a_step_that_was_not_finite_is_done_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A learning rate that blows the weights up: the next loss is not finite, and comes out of the dump again."""
    path, run = _recipe(tmp_path, VAE_RECIPE), tmp_path / "run"
    changes = [f"output_dir={run}", "optimizer.lr=1e30", "schedule.warmup_steps=0"]
    code, _, err = _command(["train", "run", str(path), *changes], capsys)
    dump = next(run.glob("nonfinite-step-*"))
    assert code == 1 and f"vgen train replay {dump}" in err
    code, out, _ = _command(["train", "replay", str(dump)], capsys)
    seen = json.loads((dump / "dump.json").read_text())
    again = next(line for line in out.splitlines() if line.startswith("again:"))
    assert code == 0 and again == f"again: loss {seen['loss']}, gradient norm {seen['grad_norm']}"
    assert "vae." in out.splitlines()[-1]
    code, _, err = _command(["train", "replay", str(tmp_path)], capsys)
    assert code == 2 and "is no dump" in err
