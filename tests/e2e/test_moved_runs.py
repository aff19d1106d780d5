"""Runs and data sets that are moved or copied: the folder on the command line counts, and nothing else is touched."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from vgen.io.media.video import write_video

Command = Callable[..., Any]


def _fine(outcome: Any) -> Any:
    assert outcome.code == 0, outcome.err + outcome.out
    return outcome


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    frames = np.repeat(np.kron(rng.integers(60, 200, (4, 4, 3)), np.ones((8, 8, 1)))[None], 9, axis=0).astype(np.uint8)
    for index in range(9):
        frames[index, 4:20, index : index + 12] = (220, 30, 30)
    write_video(tmp_path / "clip.mp4", frames, 8.0)
    return tmp_path / "clip.mp4"


def _tune(clip: Path, run: Path, model: Path) -> list[Any]:
    return [
        "train", "clip", clip, "--prompt", "a red block", "-o", run, "--model", model, "--steps", 2, "--rank", 2,
        "--size", "32x32", "--num-frames", "5", "--device", "cpu", "--set", "every.validate=0",
        "--set", "every.checkpoint=1", "--set", "schedule.name=constant",
    ]  # fmt: skip


def _state(folder: Path) -> dict[Path, tuple[int, int]]:
    """Inode and change of every file below a folder."""
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def _weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{step:08d}" / "model.safetensors")


def test_a_run_goes_on_where_it_lies(run_cli: Command, clip: Path, tmp_path: Path, tiny_pipeline_folder: Path) -> None:
    first, moved, copied = (tmp_path / name for name in ("first", "moved", "2024"))
    _fine(run_cli(*_tune(clip, first, tiny_pipeline_folder)))
    assert str(tmp_path) not in (first / "recipe.yaml").read_text().replace(str(tiny_pipeline_folder), "")
    first.rename(moved)
    shutil.copytree(moved, copied)
    before = _state(moved)
    more = ["--set", "stages.0.steps=3"]
    done = _fine(run_cli("train", "resume", copied, *more))
    assert "resuming at step 2 of 3" in done.out and f"The run is in {copied}" in " ".join(done.out.split())
    assert "the recipe changed since that checkpoint was written: stages" in done.out, "the data is the same elsewhere"
    assert _state(moved) == before and not first.exists(), "only the copy was trained"
    _fine(run_cli("train", "run", moved / "recipe.yaml", "stages.0.steps=3"))
    assert not first.exists()
    for name, value in _weights(moved, 3).items():
        assert torch.equal(value, _weights(copied, 3)[name]), name
    refused = run_cli("train", "resume", copied, "--set", f"output_dir={first}")
    assert refused.code == 2 and "a run writes to its own folder" in " ".join(refused.err.split())


def test_a_run_of_an_earlier_version_goes_on_where_it_lies(
    run_cli: Command, clip: Path, tmp_path: Path, tiny_pipeline_folder: Path
) -> None:
    first, moved = tmp_path / "first", tmp_path / "moved"
    _fine(run_cli(*_tune(clip, first, tiny_pipeline_folder)))
    recipe = yaml.safe_load((first / "recipe.yaml").read_text())
    recipe["output_dir"] = str(first)  # as 9b83d58 wrote it
    place = next((first / "data" / "cache").glob("*/index.json"))
    recipe["data"] |= {"folder": str(first / "data"), "cache": str(place)}
    (first / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    shutil.copytree(first, moved)
    before = _state(first)
    for words in (
        ["train", "resume", moved, "--set", "stages.0.steps=3"],
        ["lora", "export", moved, "-o", tmp_path / "mine.safetensors"],
    ):
        _fine(run_cli(*words))
    assert _state(first) == before and "00003" in " ".join(path.name for path in (moved / "checkpoints").iterdir())


def test_a_data_set_and_its_footage_are_moved(
    run_cli: Command, clip: Path, tmp_path: Path, tiny_pipeline_folder: Path
) -> None:
    project, elsewhere, run = tmp_path / "project", tmp_path / "elsewhere", tmp_path / "run"
    (project / "footage").mkdir(parents=True)
    clip.rename(project / "footage" / "clip.mp4")
    words = ["--model", tiny_pipeline_folder, "--device", "cpu"]
    _fine(run_cli("data", "ingest", project / "footage", "-o", project / "ds"))
    _fine(run_cli("data", "caption", project / "ds", "--from", "text", "--text", "a red block"))
    _fine(run_cli("data", "cache", project / "ds", *words, "--size", "32x32", "--num-frames", "5"))
    quick = ["--set", "every.validate=0", "--set", "schedule.name=constant"]
    _fine(run_cli("train", "lora", project / "ds", "-o", run, *words, "--steps", 1, "--rank", 2, *quick))
    project.rename(elsewhere)
    _fine(run_cli("data", "cache", elsewhere / "ds", *words, "--size", "16x16", "--num-frames", "5"))
    longer = ["--set", "stages.0.steps=2"]
    lost = run_cli("train", "resume", run, *longer)
    assert lost.code == 2 and "--set data.folder=FOLDER" in " ".join(lost.err.split())
    done = _fine(run_cli("train", "resume", run, *longer, "--set", f"data.folder={elsewhere / 'ds'}"))
    assert "resuming at step 1 of 2" in done.out


def test_another_model_under_a_run_is_refused(
    run_cli: Command, clip: Path, tmp_path: Path, tiny_pipeline_folder: Path
) -> None:
    model, run = tmp_path / "model", tmp_path / "run"
    shutil.copytree(tiny_pipeline_folder, model)
    _fine(run_cli(*_tune(clip, run, model)))
    file = model / "transformer" / "diffusion_pytorch_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    more = ["--set", "stages.0.steps=3"]
    refused = run_cli("train", "resume", run, *more)
    assert refused.code == 2 and "was trained on another model" in " ".join(refused.err.split())
    _fine(run_cli("train", "resume", run, *more, "--set", "accept_other_data=true"))
    state = json.loads((run / "checkpoints" / "step-00000003" / "state.json").read_text())
    assert len(state["origin"]) == 64
