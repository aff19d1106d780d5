"""From a folder of footage to a LoRA in use: the commands, run as a user would, on clips made here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import LTXPipeline
from einops import rearrange
from safetensors.torch import load_file

from vgen.io.media.video import read_video, write_video
from vgen.pipelines import TextToVideoPipeline

CAPTIONS = {"red": "a red block moves right", "blue": "a blue block moves down"}


def _clip(colour: tuple[int, int, int], down: bool, frames: int = 20, side: int = 64) -> np.ndarray:
    rng = np.random.default_rng(sum(colour))
    ground = np.kron(rng.integers(90, 160, (side // 8, side // 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    made = np.repeat(ground[None], frames, axis=0)
    for index in range(frames):
        row, column = (2 + 2 * index, 20) if down else (20, 2 + 2 * index)
        made[index, row : row + 18, column : column + 18] = colour
    return made


@pytest.fixture(scope="module")
def footage(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("footage")
    (root / "extra").mkdir()
    write_video(root / "red.mp4", _clip((220, 30, 30), down=False), 8.0)
    write_video(root / "extra" / "blue.mp4", _clip((30, 40, 220), down=True), 8.0)
    (root / "red.txt").write_text(f"{CAPTIONS['red']}\nsomething red\n")
    (root / "extra" / "blue.txt").write_text(f"\ufeff{CAPTIONS['blue']}\n", encoding="utf-8")
    return root


def _fine(outcome):
    assert outcome.code == 0, outcome.err + outcome.out
    return outcome


@pytest.fixture
def data(run_cli, footage, tmp_path, tiny_pipeline_folder) -> Path:
    folder = tmp_path / "ds"
    _fine(run_cli("data", "ingest", footage, "-o", folder))
    _fine(run_cli("data", "caption", folder, "--from", "sidecar"))
    _fine(run_cli("data", "cache", folder, "--model", tiny_pipeline_folder, "--device", "cpu"))
    return folder


def _train(folder, model, run, *more):
    return ["train", "lora", folder, "--model", model, "-o", run, "--steps", 6, "--rank", 4, "--lr", "1e-2", "--device",
            "cpu", "--set", "every.checkpoint=2", "--set", "every.validate=0", *more]  # fmt: skip


def _files(folder: Path) -> dict[Path, tuple[int, int]]:
    """Inodes and sizes: a file that is written again gets another inode."""
    return {path: (path.stat().st_ino, path.stat().st_size) for path in folder.rglob("*") if path.is_file()}


def test_the_eight_commands(run_cli, data, tmp_path, tiny_pipeline_folder, footage) -> None:
    model, run = tiny_pipeline_folder, tmp_path / "run"
    before = _files(data)
    _fine(run_cli("data", "ingest", footage, "-o", data))
    _fine(run_cli("data", "caption", data, "--from", "sidecar"))
    done = _fine(run_cli("data", "cache", data, "--model", model, "--device", "cpu"))
    assert "0 samples encoded now, 4 in all" in done.out and _files(data) == before
    done = _fine(run_cli(*_train(data, model, run, "--tasks", "text=1,first=1,prefix=1,other=3", "--batch", 3)))
    assert "step 6/6" in done.out
    written = _files(run)
    done = _fine(run_cli("train", "run", run / "recipe.yaml", "--dry-run", "every.validate=3"))
    assert "per process" in done.out and "validation" in done.out and _files(run) == written
    done = _fine(run_cli("train", "resume", run))  # finished: nothing to do but to export again
    assert "resuming at step 6 of 6" in done.out
    done = _fine(run_cli("evaluate", run, "--device", "cpu"))
    scores = json.loads((run / "evaluation.json").read_text())
    assert set(scores["checkpoints"]) == {"step-00000002", "step-00000004", "step-00000006"}
    losses = {name: row["loss"] for name, row in scores["checkpoints"].items()}
    assert scores["best"] == min(losses, key=losses.get) and len(scores["clips"]) == 2
    assert (run / "evaluation.png").stat().st_size > 1000
    words = ["generate", CAPTIONS["red"], "--model", model, "--seed", 1, "--device", "cpu", "--steps", 2]
    _fine(run_cli(*words, "-o", tmp_path / "base.gif"))
    plain = read_video(tmp_path / "base.gif").frames
    seen = {}
    for layout in ("diffusers", "comfy", "original"):
        file = tmp_path / f"{layout}.safetensors"
        done = _fine(run_cli("lora", "export", run, "-o", file, "--format", layout))
        assert scores["best"] in done.out
        done = _fine(run_cli(*words, "--lora", f"{file}:0.8", "-o", tmp_path / f"{layout}.gif"))
        assert "20 layers, scale 0.8" in " ".join(done.out.split())
        seen[layout] = read_video(tmp_path / f"{layout}.gif").frames
    assert not np.array_equal(seen["diffusers"], plain)
    np.testing.assert_array_equal(seen["diffusers"], seen["comfy"])
    np.testing.assert_array_equal(seen["diffusers"], seen["original"])
    _fine(run_cli(*words, "--lora", f"{tmp_path / 'comfy.safetensors'}:0", "-o", tmp_path / "zero.gif"))
    np.testing.assert_array_equal(read_video(tmp_path / "zero.gif").frames, plain)
    assert run_cli("lora", "export", run, "-o", tmp_path / "comfy.safetensors").code == 2  # it is there


def test_a_stopped_run_goes_on_to_the_same_weights(run_cli, data, tmp_path, tiny_pipeline_folder) -> None:
    for name in ("whole", "parted"):
        more = ["--seed", 3, "--tasks", "text=1,first=1,prefix=1,other=1"]
        if name == "parted":
            (tmp_path / name).mkdir()
            (tmp_path / name / "stop").touch()  # asked to stop after its first step
        _fine(run_cli(*_train(data, tiny_pipeline_folder, tmp_path / name, *more)))
    assert not (tmp_path / "parted" / "export").exists()
    _fine(run_cli("train", "resume", tmp_path / "parted", "--set", "every.validate=0"))
    state = [
        load_file(tmp_path / name / "checkpoints" / "step-00000006" / "model.safetensors")
        for name in ("whole", "parted")
    ]
    assert state[0].keys() == state[1].keys() and len(state[0]) == 2 * 20
    assert all(torch.equal(value, state[1][name]) for name, value in state[0].items())
    again = run_cli(*_train(data, tiny_pipeline_folder, tmp_path / "whole", "--rank", 2))
    assert again.code == 2 and "another recipe" in again.err
    longer = run_cli(*_train(data, tiny_pipeline_folder, tmp_path / "whole", "--seed", 3, "--tasks",
                             "text=1,first=1,prefix=1,other=1", "--steps", 8))  # fmt: skip
    assert longer.code == 2 and f"`vgen train resume {tmp_path / 'whole'} --set stages.0.steps=8`" in longer.err
    _fine(run_cli("train", "resume", tmp_path / "whole", "--set", "stages.0.steps=8"))
    assert (tmp_path / "whole" / "checkpoints" / "step-00000008").is_dir(), "what the message says is the way"


def test_a_killed_cache_loses_nothing(run_cli, footage, tmp_path, tiny_pipeline_folder) -> None:
    folder = tmp_path / "ds"
    _fine(run_cli("data", "ingest", footage, "-o", folder))
    _fine(run_cli("data", "caption", folder, "--from", "text", "--text", "a block"))
    words = [sys.executable, "-m", "vgen", "data", "cache", str(folder), "--model", str(tiny_pipeline_folder),
             "--num-frames", "1,5", "--device", "cpu"]  # fmt: skip
    killed = subprocess.Popen(words, env=os.environ, stdout=subprocess.DEVNULL)
    while not list(folder.glob("latents/*/*.safetensors")) and killed.poll() is None:
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    kept = _files(folder / "latents")
    kept = {path: stamp for path, stamp in kept.items() if path.suffix == ".safetensors"}
    assert kept
    _fine(run_cli(*words[3:]))
    now = _files(folder / "latents")
    assert {path: now[path] for path in kept} == kept
    index = json.loads(next((folder / "cache").glob("*/index.json")).read_text())
    assert len(index["samples"]) == 8 == len([path for path in now if path.suffix == ".safetensors"])


def test_refusals_name_file_and_reason(run_cli, footage, data, tmp_path, tiny_pipeline_folder) -> None:
    model = tiny_pipeline_folder
    empty = tmp_path / "other"
    _fine(run_cli("data", "ingest", footage, "-o", empty))
    cases = [
        (["data", "caption", tmp_path, "--from", "sidecar"], "is not a data set"),
        (["data", "caption", empty, "--from", "guess"], "use sidecar, text, trigger or model"),
        (["data", "caption", empty, "--from", "text"], "--text"),
        (["data", "caption", empty, "--from", "model", "--model", tmp_path], "has no config.json"),
        (["data", "cache", empty, "--model", model], "2 clips without a caption"),
        (["data", "cache", data, "--model", model, "--num-frames", "6"], "num_frames=6"),
        (["data", "cache", data, "--model", model, "--size", "640x640"], "too small: 64 x 64 pixels"),
        (["train", "lora", data, "--model", "sprites", "-o", tmp_path / "x"], "has no cache for model 'sprites'"),
        (_train(data, model, tmp_path / "x", "--targets", "attn9"), "'attn9' is no linear layer"),
        (_train(data, model, tmp_path / "y", "--weights", "none=2"), "no sample is in the folder 'none'"),
        (_train(data, model, tmp_path / "z", "--small-buckets", "refuse", "--batch", 9), "fewer samples than a batch"),
        (["train", "resume", tmp_path], "holds no recipe.yaml"),
        (["evaluate", tmp_path], "holds no recipe.yaml"),
        (["lora", "export", tmp_path, "-o", tmp_path / "a.safetensors"], "holds no recipe.yaml"),
    ]
    for words, message in cases:
        done = run_cli(*words)
        assert done.code == 2 and message in " ".join(done.err.split()), (words, done.err)
    source = json.loads((data / "clips.jsonl").read_text().splitlines()[0])["source"]
    lines = (data / "clips.jsonl").read_text().replace(source, str(tmp_path / "gone.mp4"))
    (data / "clips.jsonl").write_text(lines)
    done = run_cli("data", "cache", data, "--model", model, "--num-frames", "5")
    assert done.code == 2 and "gone.mp4 is missing" in " ".join(done.err.split())


def test_a_trigger_word_weights_and_several_captions(run_cli, data, tmp_path, tiny_pipeline_folder) -> None:
    from vgen.pipelines.loading.model_files import ModelParts
    from vgen.training.config.data import FootageConfig
    from vgen.training.data.footage.cache import CacheIndex, find_index
    from vgen.training.data.plan import Draw
    from vgen.training.objectives.flow.build import footage_source
    from vgen.training.randomness import Keys

    _fine(run_cli("data", "caption", data, "--from", "trigger", "--trigger", "zxq"))
    place = find_index(data, str(tiny_pipeline_folder))
    index, parts = CacheIndex.open(place), ModelParts.find(tiny_pipeline_folder)
    config = FootageConfig(kind="footage", folder=data, cache=place, weights={"extra": 0.0})
    source = footage_source(config, index, parts, 0.25)
    seen, texts = set(), []
    for step in range(40):
        keys = Keys(0, step)
        places = source.choose(9, 3, keys.generator("order"))
        seen |= {source.samples[spot].clip.split("-")[0] for spot in places}
        texts += source.texts(Draw(keys, 9, places))
    assert seen == {"red"}
    assert set(texts) == {"", f"zxq {CAPTIONS['red']}", "zxq something red"}
    assert 15 <= texts.count("") <= 45  # a quarter of 120


def test_a_mask_of_the_footage_weighs_the_loss(run_cli, tmp_path, tiny_pipeline_folder) -> None:
    """From the picture beside the clip to the number: only what the model makes under its white half counts."""
    from PIL import Image

    from vgen.training.data.footage.cache import find_index
    from vgen.training.objectives.registry import Setup, build
    from vgen.training.recipe import Recipe

    source = tmp_path / "in"
    source.mkdir()
    write_video(source / "red.mp4", _clip((220, 30, 30), down=False), 8.0)
    mask = np.zeros((64, 64, 3), np.uint8)
    mask[:, :32] = 255
    Image.fromarray(mask).save(source / "red.mask.png")
    folder = tmp_path / "ds"
    _fine(run_cli("data", "ingest", source, "-o", folder))
    _fine(run_cli("data", "caption", folder, "--from", "text", "--text", "red"))
    _fine(run_cli("data", "cache", folder, "--model", tiny_pipeline_folder))
    data = {"kind": "footage", "folder": folder, "cache": find_index(folder, str(tiny_pipeline_folder))}
    recipe = {
        "name": "masked", "device": "cpu", "data": data, "stages": [{"steps": 1, "frames": {9: 1.0}, "batch": {9: 1}}],
        "objective": {"kind": "finetune", "model": str(tiny_pipeline_folder)},
    }  # fmt: skip
    run = Recipe.model_validate(recipe)
    objective, source = build(run.objective, Setup(run, tmp_path, torch.device("cpu")))
    batch = {**source.stack([0]), **source.encoding(["red"])}
    frames, height, width = batch["latents"].shape[2:]
    assert (height, width) == (4, 4)
    white = np.tile([True, True, False, False], frames * height)
    velocity: list[torch.Tensor] = []
    objective.transformer.register_forward_hook(lambda module, args, output: velocity.append(output[0]))
    noise = torch.randn(1, frames * height * width, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        error = objective.errors(batch, [], torch.tensor([0.7]), noise)
    clean = batch["latents"][0].permute(1, 2, 3, 0).reshape(-1, 4).numpy()
    each = ((velocity[0][0].numpy() - (noise[0].numpy() - clean)) ** 2).mean(axis=-1)
    assert float(error) == pytest.approx(each[white].mean(), rel=0.02)  # the mask's edge is resampled
    assert abs(each[white].mean() / each[~white].mean() - 1) > 0.1


def test_ltx_takes_the_same_way_and_diffusers_reads_the_lora(run_cli, footage, tmp_path, ltx_folders) -> None:
    model, folder, run = ltx_folders["0.9.5"], tmp_path / "ds", tmp_path / "run"
    _fine(run_cli("data", "ingest", footage, "-o", folder))
    _fine(run_cli("data", "caption", folder, "--from", "sidecar"))
    _fine(
        run_cli(
            "data", "cache", folder, "--model", model, "--size", "32x32", "--num-frames", "9,1", "--frame-rate", "8"
        )
    )
    _fine(run_cli(*_train(folder, model, run, "--tasks", "text=1,first=1,prefix=1,other=1")))
    file = tmp_path / "ltx.safetensors"
    _fine(run_cli("lora", "export", run, "-o", file))
    call = {"prompt": CAPTIONS["red"], "height": 32, "width": 32, "num_frames": 9, "num_inference_steps": 2,
            "output_type": "latent", "max_sequence_length": 32}  # fmt: skip
    latents = {}
    for name, kind in (("theirs", LTXPipeline), ("ours", TextToVideoPipeline)):
        pipe = kind.from_pretrained(model)
        pipe.set_progress_bar_config(disable=True)
        for lora in (False, True):
            if lora:
                pipe.load_lora_weights(str(file))
            made = pipe(**call, generator=torch.Generator().manual_seed(3)).frames
            latents[name, lora] = made if made.ndim == 3 else rearrange(made, "b c f h w -> b (f h w) c")
    torch.testing.assert_close(latents["ours", True], latents["theirs", True], rtol=0, atol=1e-4)
    assert (latents["theirs", True] - latents["theirs", False]).abs().max() > 1e-3


@pytest.mark.slow
def test_one_clip_and_the_vae_and_the_whole_transformer(run_cli, data, footage, tmp_path, tiny_pipeline_folder) -> None:
    model = tiny_pipeline_folder
    run = tmp_path / "one"
    quick = ["--model", model, "--steps", 2, "--device", "cpu", "--set", "every.validate=0"]
    _fine(run_cli("train", "clip", footage / "red.mp4", "--prompt", "red", "-o", run, *quick))
    assert (run / "export" / "pytorch_lora_weights.safetensors").is_file()
    _fine(run_cli("train", "vae", data, "-o", tmp_path / "vae", *quick))
    before = load_file(model / "vae" / "diffusion_pytorch_model.safetensors")
    after = load_file(tmp_path / "vae" / "export" / "diffusion_pytorch_model.safetensors")
    changed = {name.split(".")[0] for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {"decoder"}
    _fine(run_cli("train", "full", data, "-o", tmp_path / "full", *quick, "--gradient-checkpointing"))
    for trained in ("vae", "full"):
        told = _fine(run_cli("train", "run", tmp_path / trained / "recipe.yaml", "--dry-run"))
        assert "memory" in told.out
    _fine(
        run_cli("generate", "red", "--model", tmp_path / "full" / "export", "--steps", 2, "-o", tmp_path / "full.gif")
    )


@pytest.mark.slow
def test_the_embedded_model_learns_two_clips(run_cli, footage, tmp_path) -> None:
    """Loss at fixed quantiles, likeness to the footage, scale 0 and fusing, with the model of the package."""
    folder, run, file = tmp_path / "ds", tmp_path / "run", tmp_path / "my.safetensors"
    _fine(run_cli("data", "ingest", footage, "-o", folder))
    _fine(run_cli("data", "caption", folder, "--from", "sidecar"))
    _fine(run_cli("data", "cache", folder, "--size", "48x48", "--device", "cpu"))
    words = ["train", "lora", folder, "-o", run, "--steps", 120, "--batch", 4, "--lr", "2e-3", "--device", "cpu"]
    _fine(run_cli(*words, "--set", "every.validate=0", "--set", "every.checkpoint=60"))
    _fine(run_cli("evaluate", run, "--device", "cpu"))
    scores = json.loads((run / "evaluation.json").read_text())
    assert scores["checkpoints"][scores["best"]]["loss"] <= 0.7 * scores["base"]["loss"]
    for row in scores["clips"]:
        assert row["lora"]["psnr"] > row["base"]["psnr"] and row["lora"]["histogram"] > row["base"]["histogram"], row
    _fine(run_cli("lora", "export", run, "-o", file))
    pipe = TextToVideoPipeline.from_pretrained("sprites")
    pipe.set_progress_bar_config(disable=True)
    call = {"prompt": CAPTIONS["red"], "height": 48, "width": 48, "num_inference_steps": 3, "output_type": "latent"}

    def latents():
        return pipe(**call, generator=torch.Generator().manual_seed(5)).frames

    base = latents()
    pipe.load_lora_weights(str(file), "mine")
    tuned = latents()
    pipe.set_adapters(["mine"], [0.0])
    assert torch.equal(latents(), base) and not torch.equal(tuned, base)
    pipe.set_adapters(["mine"], [1.0])
    pipe.fuse_lora()
    torch.testing.assert_close(latents(), tuned, rtol=0, atol=1e-4)
