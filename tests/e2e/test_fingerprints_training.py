"""The losses of ten steps of every objective, against stored values; see `test_fingerprints.py`, which writes them.

Losses are of 32-bit floats on one thread. Convolutions without oneDNN, or linear layers off by a random 1e-6, change
them by up to 7e-5 of themselves; those of preferences, a sigmoid of a thousandfold difference, by up to 8e-4. A rate
that is 1 % higher changes the last ones by 3e-3 to 0.1.
"""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

pytestmark = pytest.mark.usefixtures("one_thread")

RELATIVE, OF_PREFERENCES = 1e-4, 2e-3
VAE = Path(str(files("vgen.assets") / "sprites" / "vae"))
TINY: dict[str, Any] = json.loads((Path(__file__).parents[1] / "tiny_models.json").read_text())
COMMON: dict[str, Any] = {
    "seed": 3,
    "num_threads": 1,
    "device": "cpu",
    "data": {"tier": 1, "height": 64, "width": 64, "workers": 0},
    "schedule": {"name": "constant", "warmup_steps": 0},
    "every": {"log": 1, "checkpoint": 1000, "validate": 0},
    "stages": [{"steps": 10, "frames": {5: 1.0}, "batch": {5: 2}}],
}
VAE_OBJECTIVE = {
    "kind": "vae",
    "model": TINY["vae"],
    "validation_clips": 1,
    "validation_frames": 5,
    "statistics_clips": 1,
}
DECODER = {**VAE_OBJECTIVE, "model": {}, "init": str(VAE), "train": "decoder"}
RECIPES: dict[str, dict[str, Any]] = {
    "vae": {
        "data": {"tier": 1, "height": 16, "width": 16, "workers": 0},
        "objective": VAE_OBJECTIVE,
        "gradient_accumulation": 2,
        "stages": [
            {"steps": 5, "frames": {1: 1.0}, "batch": {1: 2}},
            {"steps": 5, "frames": {1: 0.5, 5: 0.5}, "batch": {1: 2, 5: 1}},
        ],
    },
    "vae, inflated": {
        "data": {"tier": 1, "height": 16, "width": 16, "workers": 0},
        "objective": {**VAE_OBJECTIVE, "inflate_before": 5, "square_weight": 1.0, "structure_weight": 0.5},
        "stages": [
            {"steps": 5, "frames": {1: 1.0}, "batch": {1: 2}},
            {"steps": 5, "frames": {5: 1.0}, "batch": {5: 2}},
        ],
    },
    "decoder": {"objective": DECODER, "stages": [{"steps": 10, "frames": {5: 1.0}, "batch": {5: 1}, "crop": 32}]},
    "decoder, sharpened": {
        "objective": {**DECODER, "gan": {"weight": 0.05, "start_step": 4, "lr": 1e-3, "width": 8, "levels": 2}},
        "stages": [{"steps": 10, "frames": {5: 1.0}, "batch": {5: 2}, "crop": 32}],
    },
    "flow": {
        "objective": {**TINY["flow_objective"], "vae": str(VAE), "validation_clips": 1},
        "optimizer": {"name": "muon", "lr": 1e-3},
        "stages": [{"steps": 10, "frames": {1: 0.3, 5: 0.7}, "batch": {1: 3, 5: 4},
                    "tasks": {"text": 0.4, "first": 0.2, "prefix": 0.2, "other": 0.2}}],
    },
    "distill": {
        "objective": {
            "kind": "distill", "teacher": "sprites", "num_steps": 2, "own_states": 0.5, "error_power": 0.5,
            "trajectories": {"text": {5: 64}, "first": {5: 64}, "substeps": 1, "draft_steps": 1},
            "validation_clips": 1, "sample_clips": 0,
        },
    },
    "distill, LoRA": {
        "objective": {
            "kind": "distill", "teacher": "sprites", "num_steps": 2, "train": "lora", "rank": 4,
            "prompts": "prompts.txt", "trajectories": {"text": {5: 64}, "substeps": 1}, "validation_clips": 1,
            "sample_clips": 0,
        },
    },
    "preference": {
        "objective": {
            "kind": "preference", "model": "sprites", "flow_weight": 0.5, "validation_prompts": 8, "sample_clips": 0,
            "pairs": {"num_frames": 5, "prompts": 8, "clips": 3, "num_inference_steps": 6, "rendered": True},
        },
        "optimizer": {"lr": 1e-4},
    },
    "preference, LoRA": {
        "objective": {
            "kind": "preference", "model": "sprites", "train": "lora", "lora": {"rank": 4}, "validation_prompts": 1,
            "sample_clips": 0, "pairs": {"num_frames": 5, "file": "pairs.jsonl"},
        },
        "optimizer": {"lr": 1e-4},
    },
}  # fmt: skip


def draw_clip(colour: tuple[int, int, int], down: bool) -> list[Image.Image]:
    """20 frames of a block that moves over a chequered ground, in so few colours that GIF loses none."""
    ground = np.kron(np.indices((8, 8)).sum(0) % 2, np.ones((8, 8)))[..., None] * 60 + (90, 100, 80)
    frames = []
    for index in range(20):
        frame = ground.astype(np.uint8)
        row, column = (2 + 2 * index, 20) if down else (20, 2 + 2 * index)
        frame[row : row + 18, column : column + 18] = colour
        frames.append(Image.fromarray(frame).quantize(4))
    return frames


def write_gif(file: Path, frames: list[Image.Image]) -> None:
    """8 frames per second."""
    frames[0].save(file, save_all=True, append_images=frames[1:], duration=120)


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clips with a caption each; a file of pairs and one of prompts next to them."""
    folder = tmp_path_factory.mktemp("footage")
    for name, colour, down in (("red", (220, 30, 30), False), ("blue", (30, 40, 220), True)):
        write_gif(folder / f"{name}.gif", draw_clip(colour, down))
        (folder / f"{name}.txt").write_text(f"a {name} square moves {'down' if down else 'right'}\n")
    return folder


@pytest.mark.parametrize("name", RECIPES)
def test_losses(
    name: str, stored: Any, footage: Path, run_cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("a red circle\na blue square moves left\n")
    pairs = [{"prompt": f"a {name} square", "chosen": f"{footage / name}.gif", "rejected": f"{footage / other}.gif"}
             for name, other in (("red", "blue"), ("blue", "red"))]  # fmt: skip
    Path("pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    Path("recipe.yaml").write_text(yaml.safe_dump({**COMMON, "name": "ten", **RECIPES[name], "output_dir": "run"}))
    done = run_cli("train", "run", "recipe.yaml")
    assert done.code == 0, f"{name}: {done.err}"
    check_losses(f"losses: {name}", tmp_path / "run", stored)


def check_losses(key: str, run: Path, stored: Any) -> None:
    """Those of a run of ten steps, as its log holds them."""
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 10
    stored.check(key, losses, relative=OF_PREFERENCES if "preference" in key else RELATIVE)


@pytest.fixture(scope="module")
def data(footage: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set of the two clips, cached for the embedded model."""
    from vgen.cli import main

    folder = tmp_path_factory.mktemp("data") / "set"
    for words in (
        ["ingest", footage, "-o", folder],
        ["caption", folder, "--from", "sidecar"],
        ["cache", folder, "--model", "sprites", "--num-frames", 5, "--size", "64x64", "--device", "cpu"],
    ):
        with pytest.raises(SystemExit) as leaving:
            main(["data", *map(str, words)])
        assert not leaving.value.code
    return folder


FINE_TUNING: dict[str, list[Any]] = {
    "lora": ["lora", "--rank", 4, "--tasks", "text=1,first=1,prefix=1,other=1"],
    "lora, attention": ["lora", "--rank", 4, "--targets", "attention", "--lr", 1e-3, "--gradient-checkpointing"],
    "lora, muon": ["lora", "--rank", 4, "--optimizer", "muon"],
    "full": ["full"],
    "vae": ["vae", "--train", "decoder"],
}


@pytest.mark.parametrize("name", FINE_TUNING)
def test_losses_of_fine_tuning(name: str, stored: Any, data: Path, run_cli: Any, tmp_path: Path) -> None:
    kind, *options = FINE_TUNING[name]
    done = run_cli(
        "train", kind, data, "--model", "sprites", "-o", tmp_path / "run", "--steps", 10, "--seed", 3,
        "--device", "cpu", "--batch", 2, "--set", "every.log=1",
        "--set", "every.validate=0", "--set", "num_threads=1", *options,
    )  # fmt: skip
    assert done.code == 0, f"{name}: {done.err}"
    check_losses(f"losses: fine-tuning, {name}", tmp_path / "run", stored)
