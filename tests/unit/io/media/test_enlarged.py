"""Clips that are written larger: what is looked at is large, what is given back in is what was made."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vgen.errors import OutputError, RequestError
from vgen.io.media.enlarged import Enlarged, WrittenSize, shrink
from vgen.io.media.images import read_image
from vgen.io.media.video import probe, read_video, write_video
from vgen.request.request import GenerateRequest

NAMES = {"mp4": "a.mp4", "webm": "a.webm", "gif": "a.gif", "folder": "a/"}


def _clip(height: int = 32, width: int = 48) -> np.ndarray:
    """Five frames of coarse noise: every border between two pixels is hard."""
    return np.random.default_rng(0).integers(0, 256, (5, height, width, 3), np.uint8)


def _about(scale: int, height: int = 32, width: int = 48) -> dict[str, object]:
    return {"model_hash": "0" * 64, "scale": scale, "height": height, "width": width}


@pytest.mark.parametrize("scale", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("kind", ["mp4", "webm"])
def test_a_lossy_clip_comes_back_closer_than_one_of_its_own_size(kind, scale, tmp_path) -> None:
    clip, path = _clip(), tmp_path / NAMES[kind]
    write_video(path, clip, 8.0, _about(scale), scale=scale)
    found = probe(path)
    assert (found.height, found.width) == (32 * scale, 48 * scale)
    read = read_video(path)
    assert (read.size, read.scale) == ((32, 48), scale)
    errors = np.abs(read.frames.astype(int) - clip)
    assert errors.max() <= 24
    assert errors.mean() < 3
    write_video(tmp_path / f"plain.{kind}", clip, 8.0, _about(1))
    assert np.abs(read_video(tmp_path / f"plain.{kind}").frames.astype(int) - clip).mean() > 10 * errors.mean()


@pytest.mark.parametrize("scale", [2, 3, 16])
@pytest.mark.parametrize("kind", ["gif", "folder"])
def test_a_lossless_clip_comes_back_to_the_bit(kind, scale, tmp_path) -> None:
    clip = _clip(8, 16)  # few enough colours for a gif
    write_video(tmp_path / NAMES[kind], clip, 8.0, _about(scale, 8, 16), scale=scale)
    path = tmp_path / NAMES[kind].rstrip("/")
    assert (probe(path).height, probe(path).width) == (8 * scale, 16 * scale)
    assert np.array_equal(read_video(path).frames, clip)
    picture = path / "0003.png" if kind == "folder" else path
    assert Image.open(picture).size == (16 * scale, 8 * scale)
    assert np.array_equal(np.asarray(read_image(picture)), clip[3 if kind == "folder" else 0])


def test_frames_without_their_facts_are_known_by_their_comments(tmp_path) -> None:
    clip = _clip()
    write_video(tmp_path / "a", clip, 8.0, _about(4), scale=4)
    (tmp_path / "a" / "metadata.json").unlink()
    assert np.array_equal(read_video(tmp_path / "a").frames, clip)


@pytest.mark.parametrize(
    "about",
    [
        None,
        {},
        {"scale": 4},
        {**_about(4), "scale": 99},
        {**_about(4), "scale": True},
        {**_about(4), "scale": "4"},
        {**_about(4), "height": 16},
        {name: value for name, value in _about(4).items() if name != "model_hash"},
    ],
)
def test_only_what_an_output_says_of_its_own_size_is_undone(about, tmp_path) -> None:
    large = np.stack(list(Enlarged(_clip(), 4)))
    write_video(tmp_path / "a", large, 8.0, about)
    assert np.array_equal(read_video(tmp_path / "a").frames, large)
    assert WrittenSize.read(None) is None


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 16))
def test_shrinking_undoes_enlarging(height: int, width: int, scale: int) -> None:
    clip = _clip(height, width)
    large = Enlarged(clip, scale)
    made = np.stack(list(large))
    assert made.shape == large.shape
    assert (made.size, made.nbytes, len(large)) == (large.size, large.nbytes, len(made))
    assert np.array_equal(np.stack([shrink(frame, scale) for frame in made]), clip)


def test_the_request_says_how_much(tmp_path, paper_model) -> None:
    from vgen.hub.model import Model
    from vgen.jobs.plan import Job, prepare

    model = Model.find(str(paper_model))
    for bad, near in ((0, "nearest is 1"), (17, "nearest is 16"), ("x", "whole number")):
        with pytest.raises(RequestError, match=f"scale=.*{near}"):
            GenerateRequest.create(prompt="a", scale=bad)
    request = GenerateRequest.create(prompt="a", scale="8", height=8, width=8, model=str(paper_model))
    job = prepare(request, model, str(tmp_path / "a.mp4"), overwrite=False)
    assert isinstance(job, Job)
    assert job.request.to_metadata("0" * 64)["scale"] == 8
    assert "scale" not in GenerateRequest.create(prompt="a").resolve(model.defaults, model.strides).to_metadata()
    large = GenerateRequest.create(prompt="a", scale=16, height=2048, width=64)
    with pytest.raises(OutputError, match="height=32768"):
        prepare(large, model, str(tmp_path / "a.mp4"), overwrite=False)


def test_commands_write_larger_and_take_it_back(run_cli, tiny_pipeline_folder, tmp_path) -> None:
    words = ["--model", tiny_pipeline_folder, "--seed", 3, "--steps", 1, "--scale", 4]
    done = run_cli("generate", "a ball", "-o", tmp_path / "a", *words)
    assert done.code == 0
    assert "9 frames of 32 x 32 at 8 fps, written 4 times as large" in done.out
    assert Image.open(tmp_path / "a" / "0000.png").size == (128, 128)
    assert json.loads((tmp_path / "a" / "metadata.json").read_text())["metadata"]["scale"] == 4
    made = read_video(tmp_path / "a").frames
    done = run_cli("extend", tmp_path / "a", "a ball", "--seconds", 1, "-o", tmp_path / "b", *words)
    assert done.code == 0, done.err
    assert "was scaled" not in done.out + done.err
    assert probe(tmp_path / "b").width == 128
    assert np.array_equal(read_video(tmp_path / "b").frames[: len(made)], made)
    done = run_cli("animate", tmp_path / "b" / "0008.png", "a ball", "-o", tmp_path / "c", *words)
    assert done.code == 0, done.err
    assert "was scaled" not in done.out + done.err
    assert np.array_equal(read_video(tmp_path / "c").frames[0], made[8])
    Image.fromarray(np.pad(np.full((64, 64), 255, np.uint8), 32)).save(tmp_path / "mask.png")  # drawn over the file
    done = run_cli("inpaint", tmp_path / "a", "a ball", "--mask", tmp_path / "mask.png", "-o", tmp_path / "d", *words)
    assert done.code == 0, done.err
    inpainted = read_video(tmp_path / "d").frames
    assert np.array_equal(inpainted[:, :8], made[:, :8])
    assert not np.array_equal(inpainted, made)
