"""The commands with a tiny random model, from words to a file that plays."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vgen.io.media.video import read_metadata, read_video, write_video

Run = Callable[..., Any]


def test_a_prompt_becomes_a_clip_and_the_same_seed_the_same_clip(
    tmp_path: Path, tiny_pipeline_folder: Path, run_cli: Run
) -> None:
    for name, seed in (("a.gif", 3), ("b.gif", 3), ("c.gif", 4)):
        done = run_cli(
            "generate", "a red circle", "-o", tmp_path / name, "--model", tiny_pipeline_folder, "--seed", seed
        )
        assert done.code == 0, done.err
    first, second, other = (read_video(tmp_path / name).frames for name in ("a.gif", "b.gif", "c.gif"))
    assert first.shape == (9, 32, 32, 3)
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)
    metadata = read_metadata(tmp_path / "a.gif")
    assert metadata is not None
    assert (metadata["dtype"], metadata["num_inference_steps"]) == ("float32", 3)


def test_a_preset_is_what_its_settings_give(tmp_path: Path, tiny_pipeline_folder: Path, run_cli: Run) -> None:
    """A folder's own preset through the command: numbers as options would give them, and lists, which none gives."""
    folder = Path(shutil.copytree(tiny_pipeline_folder, tmp_path / "model"))
    index = json.loads((folder / "model_index.json").read_text())
    lists = {"guidance_sigmas": [1.0, 0.7], "guidance_scale": [1.0, 4.0], "stg_scale": [2.0, 0.0], "stg_blocks": [1]}
    original = {"stg_scale": 1.0, "stg_blocks": [1], "guidance_rescale": 0.7, "guidance_scale": 3.0}
    index["defaults"]["presets"] = {"original": original, "lists": lists}
    (folder / "model_index.json").write_text(json.dumps(index))
    options = ["--stg-scale", 1, "--stg-blocks", 1, "--guidance-rescale", 0.7, "--guidance-scale", 3]
    words = {"preset": ["--preset", "original"], "options": options, "lists": ["--preset", "lists"], "plain": []}
    frames, metadata = {}, {}
    for name, more in words.items():
        done = run_cli("generate", "a dot", "-o", f"{tmp_path}/{name}.gif", "--model", folder, "--seed", 3, *more)
        assert done.code == 0, done.err
        frames[name], metadata[name] = (
            read_video(tmp_path / f"{name}.gif").frames,
            read_metadata(tmp_path / f"{name}.gif"),
        )
    assert np.array_equal(frames["preset"], frames["options"])
    assert not np.array_equal(frames["preset"], frames["plain"])
    assert not np.array_equal(frames["lists"], frames["plain"])
    assert metadata["lists"]["guidance_scale"] == [1.0, 4.0] and metadata["preset"]["preset"] == "original"
    done = run_cli("generate", "a dot", "-o", tmp_path / "x.gif", "--model", folder, "--preset", "best")
    assert done.code == 2 and "it has lists, original" in " ".join(done.err.split())


def test_a_prompt_file_gives_each_what_it_gets_alone(tmp_path: Path, tiny_pipeline_folder: Path, run_cli: Run) -> None:
    (tmp_path / "prompts.txt").write_text("a red circle\n\na blue square\n")
    model = ("--model", tiny_pipeline_folder)
    done = run_cli("generate", "--prompts", tmp_path / "prompts.txt", "-o", f"{tmp_path}/clips/", *model, "--seed", 5)
    assert done.code == 0, done.err
    done = run_cli("generate", "a blue square", "-o", tmp_path / "alone.mp4", *model, "--seed", 6)
    assert done.code == 0, done.err
    assert (tmp_path / "clips" / "0000.mp4").is_file()
    assert np.array_equal(read_video(tmp_path / "clips" / "0001.mp4").frames, read_video(tmp_path / "alone.mp4").frames)


def test_given_pixels_are_kept(tmp_path: Path, tiny_pipeline_folder: Path, run_cli: Run) -> None:
    rng = np.random.default_rng(0)
    frames = (rng.integers(0, 4, (9, 32, 32, 3)) * 80).astype(np.uint8)
    first, last = tmp_path / "first.png", tmp_path / "last.png"
    Image.fromarray(frames[0]).save(first)
    Image.fromarray(frames[-1]).save(last)
    video = write_video(f"{tmp_path}/video/", frames, 8.0)
    for words, kept in (
        (["animate", first, "it moves"], {0: frames[0]}),
        (["interpolate", first, last], {0: frames[0], -1: frames[-1]}),
        (["predict", video, "--keep-frames", "5"], dict(enumerate(frames[:5]))),
    ):
        output = f"{tmp_path}/{words[0]}/"
        done = run_cli(*words, "-o", output, "--model", tiny_pipeline_folder, "--seed", 1)
        assert done.code == 0, done.err
        found = read_video(output).frames
        assert found.shape == (9, 32, 32, 3)
        for index, expected in kept.items():
            assert np.array_equal(found[index], expected), f"{words[0]}: frame {index}"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_the_middle_leaves_nothing(
    tmp_path: Path, tiny_pipeline_folder: Path, number: int, code: int
) -> None:
    (tmp_path / "prompts.txt").write_text("a\n" * 5000)
    command = ["generate", "--prompts", "prompts.txt", "-o", "clips/", "--model", str(tiny_pipeline_folder)]
    with subprocess.Popen(
        [sys.executable, "-m", "vgen", *command],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        deadline = time.monotonic() + 300
        while not (tmp_path / "clips" / "0001.mp4").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(number)
        _, said = process.communicate(timeout=120)
    assert process.returncode == code
    assert "Traceback" not in said
    names = sorted(p.name for p in (tmp_path / "clips").iterdir())
    assert names[:2] == ["0000.mp4", "0001.mp4"]
    assert all(name.endswith(".mp4") for name in names)
    assert all(len(read_video(tmp_path / "clips" / name).frames) == 9 for name in names)
