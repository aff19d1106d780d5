"""The commands up to the model and after it: a pipeline that only records what it is asked for stands between."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vgen.io.media.video import read_metadata, read_video, write_video
from vgen.jobs.plan import Job

Run = Callable[..., Any]


class RecordingPipeline:
    """Gives grey clips and keeps the arguments of every call."""

    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.calls: list[dict[str, Any]] = []
        self.seeds: list[int] = []
        self.ahead: list[str] = []
        self.during: Callable[[], None] = lambda: None

    def encode_ahead(self, prompts: list[str], negative_prompt: str) -> None:
        self.ahead += prompts

    def __call__(self, **arguments: Any) -> SimpleNamespace:
        self.calls.append(arguments)
        self.seeds.append(arguments["generator"][0].initial_seed())
        self.during()
        shape = (1, arguments["num_frames"], arguments["height"], arguments["width"], 3)
        return SimpleNamespace(frames=np.full(shape, 128, np.uint8))


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> RecordingPipeline:
    recording = RecordingPipeline()

    def load(job: Job, *_: Any) -> RecordingPipeline:
        recording.loaded.append(job.pipeline)
        return recording

    monkeypatch.setattr("vgen.jobs.run.load_pipeline", load)
    return recording


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.new("RGB", (100, 50), (200, 30, 30)).save(path)
    return path


def test_generate(tmp_path: Path, paper_model: Path, pipeline: RecordingPipeline, run_cli: Run) -> None:
    output = tmp_path / "clip.mp4"
    done = run_cli("generate", "a red circle", "-o", output, "--model", paper_model, "--seed", 7, "--steps", 3)
    assert (done.code, done.err) == (0, f"loading {paper_model}\nwriting {output}\n")
    assert pipeline.loaded == ["TextToVideoPipeline"]
    call = pipeline.calls[0]
    assert (call["prompt"], call["num_inference_steps"], call["guidance_scale"]) == ("a red circle", 3, 2.5)
    assert (call["num_frames"], call["height"], call["width"], call["frame_rate"]) == (17, 64, 64, 8.0)
    assert pipeline.seeds == [7]
    assert "keep_known_pixels" not in call
    clip = read_video(output)
    assert clip.frames.shape == (17, 64, 64, 3)
    assert abs(int(clip.frames.mean()) - 128) <= 2
    assert f"{output}: 17 frames of 64 x 64 at 8 fps" in done.out
    assert f"seed 7, model {paper_model}" in done.out
    metadata = read_metadata(output)
    assert metadata is not None
    assert (metadata["prompt"], metadata["seed"], metadata["device"]) == ("a red circle", 7, "cpu")
    assert len(metadata["model_hash"]) == 64
    assert set(metadata["versions"]) == {"vgen", "torch", "diffusers", "transformers"}


def test_the_drawn_seed_is_said_and_kept(
    tmp_path: Path, paper_model: Path, pipeline: RecordingPipeline, run_cli: Run
) -> None:
    done = run_cli("generate", "a", "-o", tmp_path / "clip.gif", "--model", paper_model)
    assert f"seed {pipeline.seeds[0]}," in done.out
    assert read_metadata(tmp_path / "clip.gif")["seed"] == pipeline.seeds[0]  # type: ignore[index]


def test_animate(tmp_path: Path, paper_model: Path, pipeline: RecordingPipeline, picture: Path, run_cli: Run) -> None:
    words = ("animate", picture, "", "-o", tmp_path / "clip.mp4", "--model", paper_model)
    done = run_cli(*words)
    assert done.code == 0
    assert pipeline.loaded == ["ImageToVideoPipeline"]
    assert pipeline.calls[0]["image"].size == (64, 64)
    assert pipeline.calls[0]["keep_known_pixels"] is True
    assert "100 x 50 was scaled and cut to 64 x 64 (--fit cover)" in done.out
    done = run_cli(*words, "--overwrite", "--fit", "contain", "--no-keep-known-pixels")
    assert pipeline.calls[1]["image"].getpixel((0, 0)) == (0, 0, 0)
    assert pipeline.calls[1]["keep_known_pixels"] is False
    assert "scaled and padded" in done.out
    assert "input_crf" not in pipeline.calls[1], "the model's own"
    run_cli(*words, "--overwrite", "--input-crf", 30)
    assert pipeline.calls[2]["input_crf"] == 30
    refused = run_cli(*words, "--overwrite", "--input-crf", 60)
    assert refused.code == 2
    assert "input_crf=60" in refused.err


def test_interpolate(
    tmp_path: Path, paper_model: Path, pipeline: RecordingPipeline, picture: Path, run_cli: Run
) -> None:
    last = tmp_path / "last.png"
    Image.new("RGB", (64, 64), (0, 0, 250)).save(last)
    done = run_cli("interpolate", picture, last, "-o", tmp_path / "clip.mp4", "--model", paper_model, "--input-crf", 9)
    assert done.code == 0
    assert pipeline.calls[0]["input_crf"] == 9
    assert pipeline.loaded == ["MaskedPredictionPipeline"]
    first, end = pipeline.calls[0]["conditions"]
    assert (first.frame_index, first.frames.getpixel((0, 0))) == (0, (200, 30, 30))
    assert (end.frame_index, end.frames.getpixel((0, 0))) == (-1, (0, 0, 250))
    assert pipeline.calls[0]["prompt"] == ""
    assert done.out.count("--fit") == 1, "the second picture fits as it is"
    refused = run_cli("interpolate", picture, last, "-o", tmp_path / "b.mp4", "--model", paper_model, "--num-frames", 1)
    assert refused.code == 2
    assert "num_frames=1 has no room for a first and a last frame; use 5 or more" in refused.err


def test_predict(tmp_path: Path, paper_model: Path, pipeline: RecordingPipeline, run_cli: Run) -> None:
    frames = np.repeat(np.arange(0, 220, 20, dtype=np.uint8), 64 * 64 * 3).reshape(11, 64, 64, 3)
    video = write_video(f"{tmp_path}/video/", frames, 12.0)
    done = run_cli(
        "predict", video, "-o", tmp_path / "clip.mp4", "--model", paper_model, "--keep-frames", 5, "--input-crf", 7
    )
    assert done.code == 0
    assert pipeline.calls[0]["input_crf"] == 7
    assert pipeline.loaded == ["MaskedPredictionPipeline"]
    (condition,) = pipeline.calls[0]["conditions"]
    assert (condition.frame_index, condition.strength, condition.mask) == (0, 1.0, None)
    assert np.array_equal(condition.frames, frames[:5])
    assert "the clip starts with its first 5 frames of 11" in done.out
    assert "runs at 12 frames per second and the clip at 8" in done.out
    done = run_cli("predict", video, "-o", tmp_path / "b.mp4", "--model", paper_model, "--frame-rate", 12)
    assert len(pipeline.calls[1]["conditions"][0].frames) == 9, "half of the clip if nothing is said"
    assert "frames per second" not in done.out
    refused = run_cli("predict", video, "-o", tmp_path / "c.mp4", "--model", paper_model, "--keep-frames", 13)
    assert refused.code == 2
    assert "keep_frames=13" in refused.err
    assert "the video has 11" in refused.err
    refused = run_cli("predict", video, "-o", tmp_path / "c.mp4", "--model", paper_model, "--keep-frames", 4)
    assert refused.code == 2
    assert "keep_frames=4 does not fit" in refused.err and "use 1 or 5" in refused.err
    assert "the video has" not in refused.err, "as many frames are read as are kept: their number is not the video's"


def test_prompt_files(tmp_path: Path, paper_model: Path, pipeline: RecordingPipeline, run_cli: Run) -> None:
    lines = [b"\xef\xbb\xbfa red circle\r", b"", b"broken \xff", b"  ", "🎈 ../../x".encode(), b"nul \0", b"# a hash"]
    (tmp_path / "prompts.txt").write_bytes(b"\n".join(lines))
    folder = tmp_path / "clips"
    words = (
        "generate",
        "--prompts",
        tmp_path / "prompts.txt",
        "-o",
        f"{folder}/",
        "--model",
        paper_model,
        "--seed",
        10,
    )
    done = run_cli(*words)
    assert done.code == 2
    assert "line 3: byte 8 is not UTF-8" in done.err
    assert "line 6: prompt holds a NUL character at position 4" in done.err
    assert [call["prompt"] for call in pipeline.calls] == ["a red circle", "🎈 ../../x", "# a hash"]
    assert pipeline.ahead == ["a red circle", "🎈 ../../x", "# a hash"], "one load of the text encoder for all"
    assert sorted(p.name for p in folder.iterdir()) == ["0000.mp4", "0002.mp4", "0004.mp4"]
    assert pipeline.seeds == [10, 12, 14], "seed + place, so that mending a line changes no other clip"
    assert pipeline.loaded == ["TextToVideoPipeline"], "one model for all"
    assert read_metadata(folder / "0002.mp4")["prompt"] == "🎈 ../../x"  # type: ignore[index]
    again = run_cli(*words)
    assert again.code == 2
    assert "0000.mp4 exists already" in again.err
    assert len(pipeline.calls) == 3
    (tmp_path / "prompts.txt").write_text("one\ntwo\n")
    assert run_cli(*words, "--overwrite").code == 0


def test_a_folder_that_stays_empty_is_not_left(
    tmp_path: Path, paper_model: Path, pipeline: RecordingPipeline, run_cli: Run
) -> None:
    (tmp_path / "prompts.txt").write_text("one\n")
    pipeline.during = lambda: signal.raise_signal(signal.SIGINT)
    done = run_cli(
        "generate", "--prompts", tmp_path / "prompts.txt", "-o", f"{tmp_path}/clips/", "--model", paper_model
    )
    assert done.code == 130
    assert not (tmp_path / "clips").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_leave_nothing(
    tmp_path: Path, paper_model: Path, pipeline: RecordingPipeline, run_cli: Run, number: int, code: int
) -> None:
    pipeline.during = lambda: signal.raise_signal(number)
    (tmp_path / "out").mkdir()
    done = run_cli("generate", "a", "-o", tmp_path / "out" / "clip.mp4", "--model", paper_model)
    assert done.code == code
    assert "Traceback" not in done.err
    assert list((tmp_path / "out").iterdir()) == []


def test_of_two_commands_with_one_output_one_wins(
    tmp_path: Path, paper_model: Path, pipeline: RecordingPipeline, run_cli: Run
) -> None:
    """Another process puts its clip there while this one is still sampling."""
    (tmp_path / "out").mkdir()
    output = tmp_path / "out" / "clip.mp4"
    pipeline.during = lambda: output.write_bytes(b"theirs") and None
    done = run_cli("generate", "a", "-o", output, "--model", paper_model)
    assert done.code == 2
    assert "exists already" in done.err
    assert output.read_bytes() == b"theirs"
    assert [p.name for p in output.parent.iterdir()] == ["clip.mp4"]


def test_out_of_memory_is_said(tmp_path: Path, paper_model: Path, pipeline: RecordingPipeline, run_cli: Run) -> None:
    def fail() -> None:
        raise MemoryError("no room for 8 GB")

    pipeline.during = fail
    done = run_cli("generate", "a", "-o", tmp_path / "clip.mp4", "--model", paper_model)
    assert done.code == 1
    assert "64 x 64 x 17 frames in float32 did not fit" in done.err
    assert not (tmp_path / "clip.mp4").exists()


def test_info(tmp_path: Path, run_cli: Run) -> None:
    frames = np.zeros((5, 16, 16, 3), np.uint8)
    metadata = {"prompt": "a\u001b[31mb 🎈", "seed": 3}
    for name in ("clip.mp4", "clip.webm", "clip.gif", "clip/"):
        write_video(f"{tmp_path}/{name}", frames, 8.0, metadata)
        done = run_cli("info", f"{tmp_path}/{name}")
        assert done.code == 0
        assert '"a\\u001b[31mb 🎈"' in done.out, "control characters do not reach the terminal"
        assert "seed    3" in done.out
        assert json.loads(run_cli("info", f"{tmp_path}/{name}", "--json").out) == metadata


def test_info_of_foreign_files(tmp_path: Path, run_cli: Run) -> None:
    write_video(tmp_path / "clip.mp4", np.zeros((5, 16, 16, 3), np.uint8), 8.0)
    (tmp_path / "text.mp4").write_text("words")
    done = run_cli("info", tmp_path / "clip.mp4")
    assert done.code == 0
    assert "mp4 (h264), 5 frames of 16 x 16 at 8 fps" in done.out
    assert "colours: BT.709, limited range" in done.out and "It holds no vgen request." in done.out
    refused = run_cli("info", tmp_path / "clip.mp4", "--json")
    assert (refused.code, "holds no vgen request" in refused.err) == (2, True)
    for name, message in {"text.mp4": "is not a video", "no.mp4": "exist"}.items():
        done = run_cli("info", tmp_path / name)
        assert done.code == 2
        assert message in done.err


def test_version_and_help(run_cli: Run) -> None:
    from vgen.version import __version__

    assert run_cli("--version").out.strip() == f"vgen {__version__}"
    done = run_cli("--help")
    assert done.code == 0
    for command in ("generate", "animate", "interpolate", "predict", "info", "train", "evaluate"):
        assert command in done.out
        assert run_cli(command, "--help").code == 0


def test_train_checks_first(tmp_path: Path, run_cli: Run) -> None:
    done = run_cli("train", "run", tmp_path / "missing.yaml")
    assert (done.code, "there is no such file" in done.err) == (2, True)
    (tmp_path / "recipe.yaml").touch()
    done = run_cli("train", "run", tmp_path / "recipe.yaml", "optimizer.lr")
    assert (done.code, "not of the form KEY=VALUE" in done.err) == (2, True)


def test_train_hands_over(tmp_path: Path, run_cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from vgen.training import run as training

    seen: list[Any] = []
    monkeypatch.setattr(training, "run_recipe", lambda *given, **named: seen.append((given, named)) or tmp_path)
    (tmp_path / "recipe.yaml").touch()
    done = run_cli("train", "run", tmp_path / "recipe.yaml", "seed=3", "optimizer.lr=1e-3", "--fresh")
    assert done.code == 0
    assert seen == [((str(tmp_path / "recipe.yaml"), ["seed=3", "optimizer.lr=1e-3"]), {"resume": False})]


def test_evaluate_checks_first(tmp_path: Path, paper_model: Path, run_cli: Run) -> None:
    (tmp_path / "there.json").touch()
    for words, message in (
        (("--model", "sprit"), "did you mean 'sprites'"),
        (("--model", paper_model, "--seed", -1), "seed=-1"),
        (("--model", paper_model, "-o", tmp_path / "scores.txt"), "must end in .json"),
        (("--model", paper_model, "-o", tmp_path / "no" / "scores.json"), "does not exist"),
        (("--model", paper_model, "-o", tmp_path / "there.json"), "exists already"),
        (("--model", paper_model, "--report", tmp_path / "scores.txt"), "must end in .md"),
        (("--model", paper_model, "--choose-guidance", "2,x"), "choose_guidance='2,x' must be guidance scales"),
        (
            ("--model", paper_model, "--tiers", "1,4"),
            "tiers='1,4' must be tiers of SpriteWorld, comma-separated: 1,2,3",
        ),
        (("--report-from", tmp_path / "there.json"), "holds no scores"),
        (("--report-from", tmp_path / "there.json", "--report", tmp_path / "there.json"), "must end in .md"),
    ):
        done = run_cli("evaluate", *words)
        assert done.code == 2
        assert message in done.err


def test_evaluate_hands_over(tmp_path: Path, paper_model: Path, run_cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from vgen.training.evaluate import evaluate as scoring

    seen: list[Any] = []
    monkeypatch.setattr(scoring, "evaluate_model", lambda *given, **named: seen.append((given, named)))
    words = ("--model", paper_model, "--quick", "--device", "cpu", "--seed", 4, "-o", tmp_path / "scores.json")
    assert run_cli("evaluate", *words, "--tasks", "al").code == 2
    assert run_cli("evaluate", *words, "--tasks", "all").code == 0
    more = ("--report", tmp_path / "README.md", "--choose-guidance", "2,3.5,2", "--num-prompts", 9, "--seeds", 2,
            "--tiers", "1,3", "--batch-size", 5, "--workers", 3)  # fmt: skip
    assert run_cli("evaluate", *words, *more).code == 0
    expected = {
        "output": str(tmp_path / "scores.json"), "device": "cpu", "seed": 4, "tasks": "all", "budget": scoring.QUICK,
        "report": None, "guidance": (), "workers": 0,
        "command": f"vgen evaluate --model {paper_model} --tasks all --seed 4 --quick",
    }  # fmt: skip
    assert seen[0] == ((str(paper_model),), expected)
    assert seen[1][1]["budget"] == scoring.QUICK._replace(prompts=9, seeds=2, batch=5) and seen[1][1]["workers"] == 3
    monkeypatch.setattr("vgen.engine.device.choose_device", lambda asked: "cuda")
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    assert run_cli("evaluate", "--model", paper_model).code == 0
    assert seen[2][1]["budget"].batch > scoring.FULL.batch and seen[2][1]["workers"] == 15
    assert seen[1][1]["guidance"] == (2.0, 3.5) and seen[1][1]["report"] == str(tmp_path / "README.md")
    assert seen[1][1]["tiers"] == (1, 3)
    assert seen[1][1]["command"].endswith("--num-prompts 9 --seeds 2 --choose-guidance 2,3.5,2 --tiers 1,3")
