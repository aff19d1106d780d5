"""What the commands say of a video before they run, and the masks that they take."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vgen.io.media.video import write_video
from vgen.jobs.fitting import note_of_rate
from vgen.jobs.plan import Job, plan
from vgen.jobs.run import run
from vgen.request.request import GenerateRequest

Run = Callable[..., Any]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What a pipeline that gives grey clips is asked for."""
    found: list[dict[str, Any]] = []

    def load(job: Job, *_: Any) -> Callable[..., SimpleNamespace]:
        def pipeline(**call: Any) -> SimpleNamespace:
            found.append(call)
            shape = (1, call["num_frames"], call["height"], call["width"], 3)
            return SimpleNamespace(frames=np.full(shape, 128, np.uint8))

        return pipeline

    monkeypatch.setattr("vgen.jobs.run.load_pipeline", load)
    return found


def _with_sound(path: Path, num_frames: int = 9, rate: int = 8) -> Path:
    import av

    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=rate)
        video.width = video.height = 64
        video.pix_fmt = "yuv420p"
        sound = container.add_stream("aac", rate=16000, layout="mono")
        for index in range(num_frames):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 5 * index, np.uint8), format="rgb24")
            frame.pts = index
            container.mux(video.encode(frame))
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        samples.sample_rate, samples.pts = 16000, 0
        container.mux(sound.encode(samples))
        container.mux(video.encode())
        container.mux(sound.encode())
    return path


COMMANDS = {
    "restyle": ("restyle", "VIDEO", "a circle"),
    "inpaint": ("inpaint", "VIDEO", "a circle", "--mask", "MASK"),
    "outpaint": ("outpaint", "VIDEO", "a circle", "--width", 128),
    "predict": ("predict", "VIDEO", "a circle", "--keep-frames", 5),
    "extend": ("extend", "VIDEO", "a circle", "--seconds", 1),
}


def _words(command: str, video: Path, tmp_path: Path) -> list[Any]:
    Image.new("L", (64, 64), 255).save(tmp_path / "mask.png")
    named = {"VIDEO": video, "MASK": tmp_path / "mask.png"}
    return [named.get(word, word) for word in COMMANDS[command]]


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_said_before_a_model_is_loaded(
    tmp_path: Path, paper_model: Path, run_cli: Run, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """Nothing is loaded here: the model's weights are only on paper, so that the command ends in the middle."""
    video = _with_sound(tmp_path / "v40.mp4", 40, 30)
    loaded: list[str] = []

    def load(job: Job, *_: Any) -> None:
        loaded.append(job.pipeline)
        raise KeyboardInterrupt

    monkeypatch.setattr("vgen.jobs.run.load_pipeline", load)
    done = run_cli(*_words(command, video, tmp_path), "-o", tmp_path / "x.mp4", "--model", paper_model)
    said = " ".join(done.out.split())
    assert loaded and done.code != 0
    assert "runs at 30 frames per second and the clip at 8" in said
    assert "moves 3.75 times slower. --frame-rate 30 keeps its speed" in said
    assert "v40.mp4: its sound is not kept." in said
    if command in ("restyle", "inpaint", "outpaint"):
        assert "17 of its 40 frames are used, from the first on. --num-frames takes up to 37" in said
    if command == "predict":
        assert "the clip starts with its first 5 frames of 40" in said


def test_notes_come_before_torch_is_imported(
    tmp_path: Path, paper_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = write_video(f"{tmp_path}/video/", np.zeros((12, 64, 64, 3), np.uint8), 8.0)
    request = GenerateRequest.create(task="restyle", prompt="a", video=str(video), model=str(paper_model))
    job, seen = plan(request, tmp_path / "x.mp4"), []
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError):
        run(job, seen.append)
    assert [event.name for event in seen] == ["queued", "note", "loading", "failed"]
    assert "9 of its 12 frames are used" in seen[1].text


@pytest.mark.parametrize("command", ["restyle", "inpaint", "outpaint", "predict"])
def test_sound_that_is_dropped_is_said(
    tmp_path: Path, paper_model: Path, calls: list[dict[str, Any]], run_cli: Run, command: str
) -> None:
    words = ["-o", tmp_path / "x.mp4", "--model", paper_model]
    done = run_cli(*_words(command, _with_sound(tmp_path / "loud.mp4"), tmp_path), *words)
    assert done.code == 0, done.err
    assert "loud.mp4: its sound is not kept." in done.out
    silent = write_video(tmp_path / "silent.mp4", np.zeros((9, 64, 64, 3), np.uint8), 8.0)
    done = run_cli(*_words(command, silent, tmp_path), *words, "--overwrite")
    assert "its sound" not in done.out


def test_a_long_video_is_fitted_as_it_is_read(
    tmp_path: Path, paper_model: Path, run_cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`extend` holds pictures of the clip's size, whatever the size of the file's."""
    video = write_video(tmp_path / "big.mp4", np.full((12, 256, 512, 3), 90, np.uint8), 8.0)
    monkeypatch.setattr("vgen.io.media.limits.MAX_DECODED_BYTES", 20 * 64 * 64 * 3)
    given: list[np.ndarray] = []

    def load(job: Job, *_: Any) -> None:
        assert job.inputs.long is not None and job.inputs.long.start is not None
        given.append(job.inputs.long.start)
        raise KeyboardInterrupt

    monkeypatch.setattr("vgen.jobs.run.load_pipeline", load)
    run_cli("extend", video, "a", "--seconds", 1, "-o", tmp_path / "x.mp4", "--model", paper_model)
    assert given[0].shape == (12, 64, 64, 3)


def _white_on_clear(size: tuple[int, int] = (64, 64)) -> Image.Image:
    """White all over, and transparent but for a tenth."""
    rgba = np.full((*size, 4), 255, np.uint8)
    rgba[..., 3] = 0
    rgba[: size[0] // 2, : size[1] // 5, 3] = 255
    return Image.fromarray(rgba)


@pytest.mark.parametrize("name", ["m.png", "m.webp", "m.gif", "m.tif", "m.tiff", "M.PNG", "m"])
def test_alpha_of_a_mask_counts(
    tmp_path: Path, paper_model: Path, calls: list[dict[str, Any]], run_cli: Run, name: str
) -> None:
    _save(_white_on_clear(), tmp_path / name)
    call, said = _inpaint(tmp_path, paper_model, calls, run_cli, tmp_path / name)
    assert "9 % of the pixels" in said, "12 of 64 columns in half of the rows"
    known = call["conditions"][0].mask
    assert known.shape == (9, 64, 64)
    assert (known[:, :32, :12] == 0).all() and (known[:, 32:] == 1).all() and (known[:, :, 12:] == 1).all()


def _save(picture: Image.Image, path: Path) -> None:
    kind = {"": "PNG", ".tif": "TIFF"}.get(path.suffix, path.suffix[1:].upper())
    picture.save(path, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))


def _inpaint(
    tmp_path: Path, model: Path, calls: list[dict[str, Any]], run_cli: Run, mask: Path
) -> tuple[dict[str, Any], str]:
    video = write_video(f"{tmp_path}/video/", np.full((9, 64, 64, 3), 90, np.uint8), 8.0)
    done = run_cli("inpaint", video, "a", "--mask", mask, "-o", tmp_path / "x.mp4", "--model", model)
    assert done.code == 0, done.err
    return calls[-1], " ".join(done.out.split())


@pytest.mark.parametrize("name", ["m.mp4", "m.webm", "m.gif", "m.png", "m/", "m.mkv"])
def test_every_kind_of_video_is_a_mask(
    tmp_path: Path, paper_model: Path, calls: list[dict[str, Any]], run_cli: Run, name: str
) -> None:
    frames = np.zeros((9, 64, 64, 3), np.uint8)
    for index in range(9):
        frames[index, :, 4 * index : 4 * index + 16] = 255
    if name == "m.png":
        pictures = [Image.fromarray(frame) for frame in frames]
        pictures[0].save(tmp_path / name, save_all=True, append_images=pictures[1:], duration=125)
    elif name == "m.mkv":
        write_video(tmp_path / "m.webm", frames, 8.0).rename(tmp_path / name)
    else:
        write_video(f"{tmp_path}/{name}", frames, 8.0)
    call, said = _inpaint(tmp_path, paper_model, calls, run_cli, tmp_path / name)
    assert "25 % of the pixels" in said
    expected = 1 - frames[..., 0] / 255
    assert np.abs(call["conditions"][0].mask - expected).mean() < 0.02


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (lambda path: Image.new("L", (64, 64), 0).save(path, "PNG"), "has no white place"),
        (lambda path: Image.new("RGBA", (64, 64), (255, 255, 255, 0)).save(path, "PNG"), "has no white place"),
        (lambda path: path.write_bytes(b"8BPS" + bytes(60)), "is not a video"),
        (lambda path: path.write_text("white"), "looks like text"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: Image.fromarray(np.ones((64, 64), np.float32)).save(path, "TIFF"), "floating-point"),
        (lambda path: Image.new("L", (64, 32), 255).save(path, "PNG"), "make it the same size"),
    ],
    ids=["black", "clear", "psd", "text", "empty", "float", "size"],
)
def test_a_mask_that_cannot_be_used_is_refused(
    tmp_path: Path, paper_model: Path, run_cli: Run, content: Callable[[Path], Any], cause: str
) -> None:
    content(tmp_path / "mask.any")
    video = write_video(f"{tmp_path}/video/", np.full((9, 64, 64, 3), 90, np.uint8), 8.0)
    done = run_cli(
        "inpaint", video, "a", "--mask", tmp_path / "mask.any", "-o", tmp_path / "x.mp4", "--model", paper_model
    )
    assert done.code == 2
    assert "mask.any" in done.err and cause in " ".join(done.err.split())


def test_a_rate_that_no_clip_may_have_is_not_proposed() -> None:
    assert "--frame-rate 120 keeps" in note_of_rate("a.mp4", 120.0, 8.0)[0]
    assert "--frame-rate" not in note_of_rate("a.mp4", 300.0, 8.0)[0]
