"""Bad input to the command: exit code 2, one clear message, nothing loaded, nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vgen.io.media.video import write_video

Run = Callable[..., Any]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with good and bad input files; outputs go to its empty folder `out`."""
    (tmp_path / "out").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "good.png")
    write_video(tmp_path / "good.mp4", np.zeros((9, 64, 64, 3), np.uint8), 8.0)
    content = (tmp_path / "good.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: len(content) // 2])
    (tmp_path / "empty.png").touch()
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.png").write_text("words")
    (tmp_path / "bad.txt").write_bytes(b"\xff\n\0\n")
    (tmp_path / "list.mp4").write_text("#EXTM3U\nhttp://127.0.0.1:9/a.ts\n")
    return tmp_path


@pytest.fixture
def no_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that would be run fails the test."""

    def refuse(*_: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("vgen.jobs.run.load_pipeline", refuse)


GENERATE_FAULTS = [
    (["--width", "500"], "width=500", "496 or 504"),
    (["--num-frames", "24"], "num_frames=24", "21 or 25"),
    (["--num-frames", "0"], "num_frames=0", "nearest is 1"),
    (["--num-frames", "-5"], "num_frames=-5", "nearest is 1"),
    (["--num-frames", "1.5"], "num_frames=1.5", "use 1 or 2"),
    (["--num-frames", "abc"], "num_frames='abc'", "whole number"),
    (["--steps", "0"], "num_inference_steps=0", "nearest is 1"),
    (["--steps", "1000000"], "num_inference_steps=1000000", "nearest is 1000"),
    (["--guidance-scale", "nan"], "guidance_scale='nan'", "0 to 100"),
    (["--guidance-scale", "inf"], "guidance_scale=inf", "nearest is 100"),
    (["--seed", "-1"], "seed=-1", "nearest is 0"),
    (["--seed", str(2**64)], f"seed={2**64}", f"nearest is {2**63 - 1}"),
    (["--frame-rate", "0"], "frame_rate=0", "nearest is 0.1"),
    (["--frame-rate", "1e9"], "frame_rate=1e9", "nearest is 240"),
    (["--width", "100000", "--height", "100000"], "width=100000", "GB"),
    (["--device", "gpu"], "device='gpu'", "use cpu"),
    (["--dtype", "float12"], "dtype='float12'", "did you mean"),
    (["--model", "sprits"], "model='sprits'", "did you mean 'sprites'"),
    (["--model", "nobody/nothing"], "model='nobody/nothing'", "hf download nobody/nothing"),
]


@pytest.mark.usefixtures("no_loading")
@pytest.mark.parametrize(("words", "value", "remedy"), GENERATE_FAULTS)
def test_parameters(place: Path, paper_model: Path, run_cli: Run, words: list[str], value: str, remedy: str) -> None:
    model = [] if "--model" in words else ["--model", paper_model]
    done = run_cli("generate", "a red circle", "-o", place / "out" / "clip.mp4", *model, *words)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("vgen: ")
    assert value in done.err
    assert remedy in done.err
    assert list((place / "out").iterdir()) == []


@pytest.mark.usefixtures("no_loading")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["generate", "", "-o", "out/clip.mp4"], "prompt is empty"),
        (["generate", "-o", "out/clip.mp4"], "prompt is empty"),
        (["generate", "x" * 100_000, "-o", "out/clip.mp4"], "prompt has 100,000 characters"),
        (["generate", "a\udc80", "-o", "out/clip.mp4"], "lone surrogate"),
        (["generate", "a", "-o", "no/clip.mp4"], "no does not exist; make it first"),
        (["generate", "a", "-o", "out/clip.avi"], "use .mp4, .webm, .gif"),
        (["generate", "a", "-o", "good.mp4"], "good.mp4 exists already"),
        (["generate", "a", "-o", "out"], None),
        (["generate", "a", "-o", "out/clip.gif", "--frame-rate", "60"], "at most 50"),
        (["generate", "a", "--prompts", "good.png", "-o", "out/"], "were both given"),
        (["generate", "--prompts", "no.txt", "-o", "out/"], "there is no such file"),
        (["generate", "--prompts", "empty.mp4", "-o", "out/"], "every line is blank"),
        (["generate", "--prompts", "text.png", "-o", "out/clip.mp4"], "with --prompts give a folder"),
        (["generate", "--prompts", "text.png", "-o", "no/clips/"], "does not exist"),
        (["generate", "--prompts", "text.png", "-o", "new/", "--width", "3"], "width=3"),
        (["generate", "--prompts", "bad.txt", "-o", "new/"], "none of its 2 prompts can be used"),
        (["animate", "no.png", "a", "-o", "out/clip.mp4"], "no.png does not exist"),
        (["animate", "empty.png", "a", "-o", "out/clip.mp4"], "empty.png is empty"),
        (["animate", "text.png", "a", "-o", "out/clip.mp4"], "text.png is not a picture"),
        (["animate", "good.png", "a", "-o", "out/clip.mp4", "--fit", "crop"], "cover, contain or stretch"),
        (["animate", "http://127.0.0.1:9/a.png", "a", "-o", "out/clip.mp4"], "is not a local file"),
        (["interpolate", "good.png", "no.png", "-o", "out/clip.mp4"], "no.png does not exist"),
        (["predict", "empty.mp4", "-o", "out/clip.mp4"], "empty.mp4 is empty"),
        (["predict", "cut.mp4", "-o", "out/clip.mp4"], "cut.mp4 is truncated"),
        (["predict", "list.mp4", "-o", "out/clip.mp4"], "list.mp4 is a playlist"),
        (["predict", "text.png", "-o", "out/clip.mp4"], "text.png is not a video"),
        (["predict", "good.mp4", "-o", "out/clip.mp4", "--keep-frames", "3"], "keep_frames=3"),
    ],
)
def test_files_and_text(
    place: Path, paper_model: Path, run_cli: Run, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str | None
) -> None:
    monkeypatch.chdir(place)
    if message is None:
        (place / "out" / "mine.txt").touch()
        message = "out exists already"
    before = {p: p.stat().st_mtime_ns for p in place.rglob("*")}
    done = run_cli(*words, "--model", paper_model)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert "Traceback" not in done.err
    assert {p: p.stat().st_mtime_ns for p in place.rglob("*") if p.name != "out"} == {
        p: t for p, t in before.items() if p.name != "out"
    }


@pytest.mark.usefixtures("no_loading")
@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a file system that nobody can write to")
def test_an_unwritable_folder_is_refused_before_sampling(paper_model: Path, run_cli: Run) -> None:
    done = run_cli("generate", "a", "-o", "/proc/clip.mp4", "--model", paper_model)
    assert done.code == 2
    assert "/proc cannot be written to" in done.err


@pytest.mark.usefixtures("no_loading")
def test_broken_models(place: Path, paper_model: Path, run_cli: Run) -> None:
    weights = paper_model / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    done = run_cli("generate", "a", "-o", place / "out" / "clip.mp4", "--model", paper_model)
    assert done.code == 2
    assert f"{weights} is truncated" in done.err
    assert list((place / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["generate", "a", "-o", "clip.mp4", "--heigth", "64"], "--height"),
        (["genrate", "a"], "generate"),
        (["generate", "a"], "--output"),
        (["animate", "-o", "clip.mp4"], "IMAGE"),
    ],
)
def test_misspelt_and_missing_words(run_cli: Run, words: list[str], message: str) -> None:
    done = run_cli(*words)
    assert done.code == 2
    assert message in done.err


def test_checks_import_nothing_heavy(place: Path, paper_model: Path) -> None:
    """In a process of its own: help, and refusals of every kind, without torch; help without numpy as well."""
    script = """
import contextlib, io, json, sys
from vgen.cli import main

def run(*words):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            main(list(words))
        except SystemExit as leaving:
            return leaving.code

heavy = ("torch", "transformers", "diffusers", "numpy", "PIL", "av", "vgen.request.request")
found = {"help": [run("--help"), [m for m in heavy if m in sys.modules]]}
found["help"] += [run("generate", "--help"), [m for m in heavy[:-1] if m in sys.modules]]
model = ("--model", sys.argv[1])
found["codes"] = [
    run("generate", "", "-o", "out/clip.mp4", *model),
    run("generate", "a", "-o", "out/clip.mp4", "--width", "500", *model),
    run("generate", "a", "-o", "good.mp4", *model),
    run("generate", "a", "-o", "out/clip.mp4", "--model", "nothing"),
    run("generate", "--prompts", "empty.mp4", "-o", "out/", *model),
    run("animate", "text.png", "a", "-o", "out/clip.mp4", *model),
    run("interpolate", "good.png", "empty.png", "-o", "out/clip.mp4", *model),
    run("predict", "cut.mp4", "-o", "out/clip.mp4", *model),
    run("info", "good.mp4"),
]
found["torch"] = [m for m in heavy[:3] if m in sys.modules]
print(json.dumps(found))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(paper_model)], capture_output=True, text=True, cwd=place, check=True
    )
    assert done.stdout.strip() == '{"help": [0, [], 0, []], "codes": [2, 2, 2, 2, 2, 2, 2, 2, 0], "torch": []}'


def test_the_module_is_the_command(place: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vgen", "generate", "", "-o", "clip.mp4"],
        capture_output=True,
        text=True,
        cwd=place,
        env={**os.environ, "NO_COLOR": "1"},
    )
    assert done.returncode == 2
    assert done.stderr.startswith("vgen: prompt is empty")
    assert done.stderr.count("\n") == 1, "one paragraph, no traceback"
