"""Footage to shots: what is kept, what is dropped, and why."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vgen.errors import OutputError, RequestError, VgenError
from vgen.io.media.video import write_video
from vgen.training.data.footage.ingest import IngestSettings, ingest
from vgen.training.data.footage.records import DataSet, read_rows


def _ingest(footage, folder, **settings):
    return ingest(footage, folder, IngestSettings(**settings), lambda text: None)


@pytest.fixture(scope="module")
def made(footage, tmp_path_factory):
    return _ingest(footage, tmp_path_factory.mktemp("data") / "ds")


def _by_name(entries):
    found = {}
    for entry in entries:
        found.setdefault(entry.source.rsplit("/", 1)[1], []).append(entry)
    return found


def test_without_the_extra_no_folder_is_left(footage, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(VgenError, match=r"vgen\[train\]"):
        _ingest(footage, tmp_path / "ds")
    assert not (tmp_path / "ds").exists()


def test_shots_have_exact_counts_and_bars_are_cut(made) -> None:
    kept = _by_name(made.data.clips)
    # `again.mp4` is the first shot of `two_shots.mp4` at twice the size, and comes first in the order of the folder
    assert {name: [clip.num_frames for clip in clips] for name, clips in kept.items()} == {
        "bars.mp4": [20],
        "faded.mp4": [20],
        "again.mp4": [20],
        "two_shots.mp4": [16],
    }
    assert kept["bars.mp4"][0].crop == (24, 0, 48, 64)
    faded = kept["faded.mp4"][0]
    assert (faded.start, faded.num_frames, faded.crop) == (4, 20, (0, 0, 48, 64))


def test_everything_dropped_has_its_reason(made) -> None:
    reasons = {name: [entry.reason for entry in entries] for name, entries in _by_name(made.data.dropped).items()}
    assert reasons["static.mp4"][0].startswith("static: ")
    assert reasons["black.mp4"][0].startswith("black: ")
    assert reasons["short.mp4"] == ["too short: 5 frames, fewer than 9"]
    # of two that are the same, the first in the order of the folder stays, whatever size it has
    assert sum("duplicate of" in reason for entries in reasons.values() for reason in entries) == 1
    assert "truncated" in reasons["broken.mp4"][0] and "is not a video" in reasons["sound.wav"][0]
    assert {entry.source.rsplit("/", 1)[1] for entry in made.failed} == {"broken.mp4", "sound.wav"}


def test_records_can_be_read_again_and_the_report_shows_all(made) -> None:
    data = DataSet.open(made.data.folder)
    assert (data.clips, data.dropped) == (made.data.clips, made.data.dropped)
    page = (data.folder / "report.html").read_text()
    assert all(clip.id in page for clip in data.clips) and "too short: 5 frames" in page
    assert all((data.folder / "thumbnails" / f"{clip.id}.jpg").is_file() for clip in data.clips)
    assert len(read_rows(data.folder / "clips.jsonl")) == len(data.clips)


def test_a_second_run_writes_nothing_and_new_settings_decode_nothing(footage, made, monkeypatch) -> None:
    files = {path: path.stat().st_mtime_ns for path in made.data.folder.rglob("*") if path.is_file()}
    again = _ingest(footage, made.data.folder)
    assert not again.changed and again.data.clips == made.data.clips
    assert {path: path.stat().st_mtime_ns for path in made.data.folder.rglob("*") if path.is_file()} == files
    monkeypatch.setattr("vgen.io.media.codec.stream.FramePixels", None)  # decoding a good file would fail now
    longer = _ingest(footage, made.data.folder, min_frames=18)
    assert all(clip.num_frames >= 18 for clip in longer.data.clips) and len(longer.failed) == 2
    assert _ingest(footage, made.data.folder).data.clips == made.data.clips


def test_nothing_is_mixed_with_what_is_there(footage, tmp_path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(OutputError, match="is not empty and is not a data set"):
        _ingest(footage, tmp_path / "mine")
    with pytest.raises(RequestError, match="does not exist"):
        _ingest(tmp_path / "none", tmp_path / "ds")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RequestError, match="has no videos"):
        _ingest(tmp_path / "empty", tmp_path / "ds")


def test_pictures_and_clips_of_any_size(scene, tmp_path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    Image.fromarray(scene(1, 9)[0]).save(source / "photo.png")
    Image.fromarray(scene(1, 8)[0]).save(source / "clip.mask.png")
    moving = [Image.fromarray(frame) for frame in scene(10, 7)]
    moving[0].save(source / "moving.webp", save_all=True, append_images=moving[1:], duration=125, lossless=True)
    write_video(source / "clip.gif", scene(10, 8)[:, :47, :61], 8.0)
    made = _ingest(source, tmp_path / "ds")
    found = {Path(clip.source).name: clip for clip in made.data.clips}
    assert {name: clip.kind for name, clip in found.items()} == {
        "photo.png": "image", "clip.gif": "video", "moving.webp": "video",
    } and not made.failed  # fmt: skip
    assert found["photo.png"].num_frames == 1 and found["clip.gif"].crop == (0, 0, 47, 61)
    assert found["moving.webp"].num_frames == 10


def test_a_bright_thing_in_the_dark_has_no_bars(tmp_path) -> None:
    rows, columns = np.mgrid[:96, :96]
    frames = np.stack(
        [((rows - 48) ** 2 + (columns - 40 - n) ** 2 < 400)[..., None].repeat(3, 2) * np.uint8(200) for n in range(12)]
    )
    write_video(tmp_path / "ball.mp4", frames, 8.0)
    made = _ingest(tmp_path / "ball.mp4", tmp_path / "ds", black_below=0)
    assert made.data.clips[0].crop == (0, 0, 96, 96)
