"""Files that commit 9b83d58 wrote: each is read with the right values, or refused with a sentence that says what to do.

They are in tests/data/9b83d58/, with ROOT in place of the folder that they were written in. Weights that would be large
are listed there by name, type and shape, and filled in here.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

FILES = Path(__file__).parents[1] / "data" / "9b83d58"
INFO: dict[str, dict[str, Any]] = json.loads((FILES / "info.json").read_text())
TEXT_ENTRY = "c9361802eebc2ef050bf2bf1eee7f522b9fcfc7f0cdf7d1dc8465a21c553f5d9.safetensors"
SHORT = ["--seed", 1, "--steps", 1, "--num-frames", 5, "--draft-steps", 0, "--device", "cpu"]


def clip_frames(path: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(file)) for file in sorted(path.glob("*.png"))])


def fine(outcome: Any) -> Any:
    assert outcome.code == 0, outcome.err
    return outcome


def refusal(outcome: Any) -> str:
    """The sentence of a command that was given what it cannot use."""
    assert outcome.code == 2, outcome.out + outcome.err
    assert "Traceback" not in outcome.err
    return " ".join(outcome.err.split())


@pytest.mark.parametrize("name", INFO)
def test_a_clip_says_what_it_said(name: str, run_cli: Any, tmp_path: Path) -> None:
    path = Path(shutil.copytree(FILES / "clips", tmp_path / "clips")) / name
    if path.is_dir():
        for index in range(INFO[name]["num_frames"]):
            Image.new("RGB", (64, 64), (index, 0, 0)).save(path / f"{index:04d}.png")
    assert json.loads(fine(run_cli("info", path, "--json")).out) == INFO[name]


@pytest.mark.parametrize("name", ["generate.mp4", "interpolate.webm"])
def test_a_clip_is_given_back_in(name: str, run_cli: Any, tmp_path: Path) -> None:
    clip = FILES / "clips" / name
    words = [
        "predict",
        FILES / "clips" / name,
        "a",
        "--keep-frames",
        5,
        "--num-frames",
        9,
        *SHORT[:4],
        "--device",
        "cpu",
    ]
    fine(run_cli(*words, "-o", f"{tmp_path}/out/"))
    stored = np.stack(list(iio.imiter(clip, plugin="pyav")))
    assert np.abs(clip_frames(tmp_path / "out")[:5].astype(int) - stored).mean() < 4  # converted from YCbCr otherwise


@pytest.mark.parametrize("layout", ["diffusers", "comfy", "original"])
def test_a_lora_is_the_checkpoint_that_it_was_exported_from(layout: str, tmp_path: Path) -> None:
    import vgen

    pipe = vgen.TextToVideoPipeline.from_pretrained("sprites")
    layer = pipe.transformer.get_submodule("transformer_blocks.0.attn1.to_q")
    before = layer.weight.detach().clone()
    pipe.load_lora_weights(FILES / f"lora-{layout}.safetensors", "old")
    pipe.fuse_lora()
    trained = load_file(FILES / "lora-diffusers.safetensors")
    down, up = (next(value for name, value in trained.items() if side in name) for side in ("lora_A", "lora_B"))
    merged = pipe.transformer.get_submodule("transformer_blocks.0.attn1.to_q")
    merged = getattr(merged, "base_layer", merged).weight.detach()
    assert (merged - before).abs().max() > 1e-6
    torch.testing.assert_close(merged - before, up.float() @ down.float(), rtol=1e-3, atol=1e-7)


def test_an_interrupted_story_is_begun_again(run_cli: Any, tmp_path: Path) -> None:
    """Its plan named fewer inputs, so that none of today's is the same."""
    segments = "".join(f'[[segment]]\nprompt = "{prompt}"\nnum_frames = 9\n' for prompt in ("a", "b"))
    (tmp_path / "story.toml").write_text(segments)
    take = tmp_path / ".out.take"
    take.mkdir()
    (take / "frames.rgb").write_bytes(bytes(18 * 64 * 64 * 3))
    state = {"plan": hashlib.sha256(b"earlier").hexdigest(), "frames": 9, "windows": 1, "seed": 6}
    (take / "state.json").write_text(json.dumps(state))
    words = ["story", tmp_path / "story.toml", "--seed", 1, "--steps", 1, "--num-frames", 9, "--device", "cpu"]
    said = fine(run_cli(*words, "-o", f"{tmp_path}/out/"))
    assert "The interrupted clip there was of other inputs or settings" in " ".join((said.out + said.err).split())
    fine(run_cli(*words, "-o", f"{tmp_path}/again/"))
    assert np.array_equal(clip_frames(tmp_path / "out"), clip_frames(tmp_path / "again"))
    assert not take.exists()


def test_a_cached_text_is_used(run_cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VGEN_CACHE", str(tmp_path / "cache"))
    entry = tmp_path / "cache" / "text" / TEXT_ENTRY
    entry.parent.mkdir(parents=True)
    shutil.copy(FILES / "text_entry.safetensors", entry)
    words = ["generate", "a red circle", "--guidance-scale", 1, *SHORT]
    for name in ("text-cache", "no-text-cache"):
        fine(run_cli(*words, f"--{name}", "-o", f"{tmp_path / name}/"))
    assert [file.name for file in entry.parent.iterdir()] == [TEXT_ENTRY], "nothing was encoded again"
    with_cache, without = (clip_frames(tmp_path / name).astype(int) for name in ("text-cache", "no-text-cache"))
    assert np.abs(with_cache - without).max() <= 1


@pytest.fixture
def fine_tuning(tmp_path: Path) -> Path:
    """A folder with the footage, the data set `ds` and the run `lora` that was stopped after 2 of 4 steps."""
    for name, target in (("footage", "foot"), ("set", "ds"), ("run", "lora")):
        shutil.copytree(FILES / name, tmp_path / target)
    for file in (*tmp_path.glob("ds/*.json*"), tmp_path / "lora" / "recipe.yaml"):
        file.write_text(file.read_text().replace("ROOT", str(tmp_path)))
    return tmp_path


def test_a_data_set_is_encoded_again_and_its_run_goes_on(run_cli: Any, fine_tuning: Path) -> None:
    """An index of that time did not say by which model, nor in which number format."""
    run, data = fine_tuning / "lora", fine_tuning / "ds"
    said = refusal(run_cli("train", "resume", run))
    assert "index.json was written by an earlier version: run `vgen data cache` again" in said
    assert "--set data.cache=KEY" in said and "--set accept_other_data=true" in said
    assert "vgen data cache" in refusal(run_cli("train", "lora", data, "-o", fine_tuning / "new", "--steps", 1))
    assert not (fine_tuning / "new").exists()
    words = ["--model", "sprites", "--num-frames", 5, "--size", "64x64", "--device", "cpu"]
    assert "3 samples encoded now, 3 in all" in " ".join(fine(run_cli("data", "cache", data, *words)).out.split())
    (key,) = {folder.name for folder in (data / "cache").iterdir()} - {"71d0ad8685a1ab1d"}
    said = refusal(run_cli("train", "resume", run, "--set", f"data.cache={key}"))
    assert "was trained on other data" in said and "accept_other_data=true" in said
    before = load_file(run / "checkpoints" / "step-00000002" / "model.safetensors")
    changes = [f"data.cache={key}", "accept_other_data=true", "optimizer.lr=1e-12"]
    done = fine(run_cli("train", "resume", run, *(word for change in changes for word in ("--set", change))))
    assert "resuming at step 2 of 4" in done.out
    after = load_file(run / "checkpoints" / "step-00000004" / "model.safetensors")
    assert after.keys() == before.keys()
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=1e-9)


def write_vae_run(folder: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A VAE run that was stopped after 2 of 4 steps, as its listing says; the recipe, and weights and averages."""
    listed = json.loads((FILES / "vae_run.json").read_text())
    checkpoint = folder / "run" / "checkpoints" / "step-00000002"
    checkpoint.mkdir(parents=True)
    weights: dict[str, torch.Tensor] = {}
    for name, file in listed["files"].items():
        tensors = {}
        for number, (key, (dtype, shape)) in enumerate(file["tensors"].items()):
            assert dtype == "F32"
            generator = torch.Generator().manual_seed(number)
            drawn = torch.rand(shape, generator=generator) * 0.1 + 0.01
            tensors[key] = torch.tensor(2.0) if key.endswith("/step") else weights.get(key, drawn)
        if name != "optimizer.safetensors":
            weights |= tensors
        save_file(tensors, checkpoint / name, file["metadata"])
    (checkpoint / "state.json").write_text(json.dumps(listed["state"]))
    manifest = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in checkpoint.iterdir()}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    recipe = {**listed["recipe"], "output_dir": str(folder / "run")}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "recipe.yaml", weights


def test_a_run_goes_on_from_its_checkpoint(run_cli: Any, tmp_path: Path) -> None:
    recipe, weights = write_vae_run(tmp_path)
    done = fine(run_cli("train", "run", recipe, "optimizer.lr=1e-12"))
    assert "resuming at step 2 of 4" in done.out and "step 4/4" in done.out
    for name in ("model", "ema"):
        after = load_file(tmp_path / "run" / "checkpoints" / "step-00000004" / f"{name}.safetensors")
        for key, value in after.items():
            torch.testing.assert_close(value, weights[key], rtol=0, atol=1e-6, msg=f"{name}: {key}")
    exported = load_file(tmp_path / "run" / "export" / "diffusion_pytorch_model.safetensors")
    kept = {name: value for name, value in exported.items() if f"vae.{name}" in weights and "latents" not in name}
    assert len(kept) > 20
    for name, value in kept.items():
        torch.testing.assert_close(value, weights[f"vae.{name}"], rtol=0, atol=1e-6)
