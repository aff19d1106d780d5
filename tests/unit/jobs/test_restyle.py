"""`vgen restyle`, and the options of schedules and guidance, up to the pipeline's call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vgen.errors import RequestError
from vgen.io.media.video import read_metadata, write_video
from vgen.jobs.plan import Job
from vgen.request.request import GenerateRequest, ResolvedRequest
from vgen.types import Strides

Run = Callable[..., Any]
DEFAULTS = {"height": 64, "width": 64, "num_frames": 17, "frame_rate": 8.0, "num_inference_steps": 20}
DEFAULTS["guidance_scale"] = 3.0


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What a pipeline that gives grey clips is asked for; its name is under "class"."""
    found: list[dict[str, Any]] = []

    def load(job: Job, *_: Any) -> Callable[..., SimpleNamespace]:
        def pipeline(**call: Any) -> SimpleNamespace:
            found.append({"class": job.pipeline, **call})
            return SimpleNamespace(frames=np.full((1, call["num_frames"], 64, 64, 3), 128, np.uint8))

        return pipeline

    monkeypatch.setattr("vgen.jobs.run.load_pipeline", load)
    return found


@pytest.fixture
def video(tmp_path: Path) -> Path:
    frames = np.repeat(np.arange(0, 220, 20, dtype=np.uint8), 100 * 50 * 3).reshape(11, 50, 100, 3)
    return write_video(f"{tmp_path}/video/", frames, 12.0)


def test_restyle(tmp_path: Path, paper_model: Path, calls: list[dict[str, Any]], video: Path, run_cli: Run) -> None:
    output = tmp_path / "clip.mp4"
    done = run_cli("restyle", video, "a red circle", "-o", output, "--model", paper_model, "--strength", 0.5)
    assert (done.code, done.err) == (0, f"reading {video}\nloading {paper_model}\nwriting {tmp_path / 'clip.mp4'}\n")
    (call,) = calls
    assert (call["class"], call["prompt"], call["denoise_strength"]) == ("VideoToVideoPipeline", "a red circle", 0.5)
    assert (call["video"].shape, call["num_frames"]) == ((9, 64, 64, 3), 9)
    assert call["video"][:, 0, 0, 0].tolist() == list(range(0, 180, 20))
    assert "9 of its 11 frames are used, from the first on. What comes after" in done.out
    assert "100 x 50 was scaled and cut to 64 x 64 (--fit cover)" in done.out
    assert "runs at 12 frames per second and the clip at 8" in done.out
    metadata = read_metadata(output)
    assert metadata is not None
    assert (metadata["task"], metadata["denoise_strength"], metadata["num_frames"]) == ("restyle", 0.5, 9)
    assert ResolvedRequest.from_metadata(metadata).denoise_strength == 0.5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--strength", 0), "denoise_strength=0 is outside 0.001 to 1; the nearest is 0.001"),
        (("--strength", 2), "the nearest is 1"),
        (("--strength", "much"), "denoise_strength='much' is not a number"),
        (("--strength", 0.01, "--steps", 8), "denoise_strength=0.01 of 8 steps leaves none to run: use 0.125 or more"),
        (("--num-frames", 33), "num_frames=33 and the video has 11 frames: use 9 or fewer"),
        (("--num-frames", 10), "num_frames=10 does not fit temporal stride 4"),
        (("--fit", "crop"), "fit='crop' is not known"),
        (("--sigmas", "0.5,0.9"), "sigmas='0.5,0.9': it must be a list of numbers that descend"),
        (("--sigmas", "1,0.9", "--steps", 4), "num_inference_steps=4 and a list of 2 sigmas contradict"),
        (("--stg-scale", 1), "stg_scale=1 needs stg_blocks"),
        (("--stg-blocks", "1"), "do nothing without stg_scale"),
        (("--stg-scale", 1, "--stg-blocks", "a"), "stg_blocks='a' is not a whole number"),
        (("--stg-scale", 1, "--stg-blocks", ","), "is not a list of whole numbers"),
        (("--stg-mode", "values"), "stg_mode='values' is not known: use attention_values"),
    ],
)
def test_refusals(
    paper_model: Path, tmp_path: Path, calls: list[dict[str, Any]], video: Path, run_cli: Run, words: Any, message: str
) -> None:
    done = run_cli("restyle", video, "a", "-o", tmp_path / "clip.mp4", "--model", paper_model, *words)
    assert done.code == 2
    assert message in done.err
    assert calls == []


def test_schedules_and_guidance(tmp_path: Path, paper_model: Path, calls: list[dict[str, Any]], run_cli: Run) -> None:
    words = ("generate", "a", "-o", tmp_path / "clip.gif", "--model", paper_model)
    options = ("--sigmas", "1, 0.9, 0.4", "--stg-scale", 1.5, "--stg-blocks", "3,4", "--stg-mode", "attention_skip")
    assert run_cli(*words, *options).code == 0
    (call,) = calls
    assert (call["sigmas"], call["num_inference_steps"]) == ((1.0, 0.9, 0.4), 3)
    assert (call["stg_scale"], call["stg_blocks"], call["stg_mode"]) == (1.5, (3, 4), "attention_skip")
    metadata = read_metadata(tmp_path / "clip.gif")
    assert metadata is not None
    assert ResolvedRequest.from_metadata(metadata).sigmas == (1.0, 0.9, 0.4)
    assert run_cli(*words, "--overwrite").code == 0
    assert not {"sigmas", "stg_scale", "stg_blocks", "stg_mode", "denoise_strength"} & calls[1].keys()


def test_requests_of_distilled_models() -> None:
    model = {**DEFAULTS, "sigmas": [1.0, 0.9, 0.5], "allowed_inference_steps": [1.0, 0.9, 0.5, 0.2]}
    request = GenerateRequest.create(prompt="a").resolve(model, Strides(4, 8, 8))
    assert (request.sigmas, request.num_inference_steps) == ((1.0, 0.9, 0.5), 3)
    with pytest.raises(RequestError, match="num_inference_steps=8: this model was distilled for 3 steps"):
        GenerateRequest.create(prompt="a", num_inference_steps=8).resolve(model, Strides(4, 8, 8))
    with pytest.raises(RequestError, match=r"sigmas holds 0\.3, .*nearest is 0\.2"):
        GenerateRequest.create(prompt="a", sigmas=[1.0, 0.3]).resolve(model, Strides(4, 8, 8))
    by_count = {**DEFAULTS, "allowed_inference_steps": [4, 8]}
    assert GenerateRequest.create(prompt="a").resolve(by_count, Strides(4, 8, 8)).num_inference_steps == 8


def test_defaults_of_restyle() -> None:
    request = GenerateRequest.create(task="restyle", video="a.mp4", prompt="").resolve(DEFAULTS, Strides(4, 8, 8), 100)
    assert (request.denoise_strength, request.num_frames) == (0.6, 17)
    with pytest.raises(RequestError, match=r"denoise_strength=0\.5 belongs to task 'restyle', not 'generate'"):
        GenerateRequest.create(prompt="a", denoise_strength=0.5)
    with pytest.raises(RequestError, match="video is missing: task 'restyle'"):
        GenerateRequest.create(task="restyle", prompt="a")
    with pytest.raises(
        RequestError, match="video='a' belongs to task 'predict', 'restyle', 'inpaint', 'outpaint' or 'extend'"
    ):
        GenerateRequest.create(prompt="a", video="a")


def test_validation_does_not_import_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys, vgen.cli; from vgen.request.request import GenerateRequest as R; "
        "R.create(task='restyle', video='a', sigmas='1,0.5', stg_scale=1, stg_blocks='1'); "
        "print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
