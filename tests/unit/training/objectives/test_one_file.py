"""A new objective is one file: mean_colour.py, next to this one, is trained through the command."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from vgen.training.config.data import SpritesConfig
from vgen.training.data.clips import SpriteClips, to_pixels
from vgen.training.objectives.registry import CONFIGS

FILE = Path(__file__).with_name("mean_colour.py")
DATA = {"tier": 1, "height": 16, "width": 16, "num_clips": 8, "workers": 0}


@pytest.fixture(autouse=True)
def mean_colour() -> Iterator[None]:
    """Imports the file, as the list of objectives in `vgen.training.recipe` imports those of the library."""
    spec = importlib.util.spec_from_file_location("mean_colour", FILE)
    assert spec is not None and spec.loader is not None
    module = sys.modules["mean_colour"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield
    del CONFIGS["mean_colour"], sys.modules["mean_colour"]


def _recipe(folder: Path, **changes: Any) -> Path:
    content = {
        "name": "colour", "device": "cpu", "data": DATA, "export_dtype": "float32",
        "objective": {"kind": "mean_colour"}, "optimizer": {"lr": 0.03, "weight_decay": 0.0}, "ema": {"limit": 0.9},
        "schedule": {"name": "constant"},
        "stages": [{"steps": 60, "frames": {1: 0.5, 5: 0.5}, "batch": {1: 4, 5: 4}}],
        "every": {"log": 20, "checkpoint": 20, "validate": 30}, **changes,
    }  # fmt: skip
    path = folder / "colour.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_an_objective_of_one_file_is_trained_and_resumed(run_cli: Callable[..., Any], tmp_path: Path) -> None:
    path, run = _recipe(tmp_path), tmp_path / "run"
    done = run_cli("train", "run", path, f"output_dir={run}")
    assert done.code == 0 and "step 60/60" in done.out, done.err
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert {name for row in rows for name in row} >= {"loss", "red", "validation/blue"}
    whole = load_file(run / "export" / "colour.safetensors")["colour"]
    clips = SpriteClips(SpritesConfig.model_validate(DATA))
    expected = to_pixels(clips.stack(list(range(8)), 5)["frames"]).mean(dim=(0, 2, 3, 4))
    assert torch.allclose(whole, expected, atol=0.15), "from -1 on"
    assert (expected > -0.8).all()

    parts = tmp_path / "parts"
    assert run_cli("train", "run", path, f"output_dir={parts}", "stages.0.steps=20").code == 0
    done = run_cli("train", "run", path, f"output_dir={parts}")
    assert done.code == 0 and "resuming at step 20 of 60" in done.out
    ends = [load_file(place / "checkpoints/step-00000060/model.safetensors")["colour"] for place in (run, parts)]
    assert torch.equal(*ends)


def test_its_dry_run_trains_nothing(run_cli: Callable[..., Any], tmp_path: Path) -> None:
    path, run = _recipe(tmp_path), tmp_path / "run"
    done = run_cli("train", "run", path, f"output_dir={run}", "--dry-run")
    assert done.code == 0, done.err
    assert "per process" in done.out and "a step of 4 x 5 frames" in done.out
    done = run_cli("train", "run", path, f"output_dir={run}", "--dry-run", "--measure")
    assert done.code == 0 and "validation" not in done.out, "it says nothing of what a validation takes"
    assert not run.exists()


def test_its_settings_are_checked(run_cli: Callable[..., Any], tmp_path: Path) -> None:
    path = _recipe(tmp_path, objective={"kind": "mean_colour", "noise": -1})
    done = run_cli("train", "run", path)
    assert done.code == 2 and "objective.noise: Input should be greater than or equal to 0" in done.err
    done = run_cli("train", "run", path, "objective={kind: other}")
    assert done.code == 2 and "mean_colour, preference, vae" in done.err
