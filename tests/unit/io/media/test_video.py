"""Writing a clip and reading it back."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vgen.errors import MediaError, OutputError, RequestError, ShapeError
from vgen.io.media.comment import dump_comment, load_comment
from vgen.io.media.video import probe, read_metadata, read_video, write_video

NAMES = ("clip.mp4", "clip.webm", "clip.gif", "clip/", "clip")
LOSSLESS = ("clip.gif", "clip/", "clip")
HARD_TEXT = 'NUL \0, lone \ud800, \u202eright to left, 🎈, "../../x", line\nbreak, ' + "long " * 300


@pytest.mark.parametrize("name", NAMES)
def test_a_clip_comes_back(tmp_path: Path, clip: np.ndarray, name: str, nothing_left: Callable[..., None]) -> None:
    metadata = {"prompt": HARD_TEXT, "seed": 2**63 - 1, "guidance_scale": 3.5}
    path = write_video(f"{tmp_path}/{name}", clip, 8.0, metadata)
    found = read_video(path)
    assert found.frames.dtype == np.uint8
    assert found.frames.shape == clip.shape
    assert found.frame_rate == 8.0
    assert found.notes == ()
    assert read_metadata(path) == metadata
    difference = np.abs(found.frames.astype(int) - clip)
    if name in LOSSLESS:
        assert difference.max() == 0
    else:
        assert difference.mean() < 3
        assert difference[0, 10:14, 3:9].max() < 12, "the middle of the red block keeps its colour"
    nothing_left(name.rstrip("/"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_frames", [1, 2])
def test_short_clips(tmp_path: Path, make_clip: Callable[..., np.ndarray], name: str, num_frames: int) -> None:
    found = read_video(write_video(f"{tmp_path}/{name}", make_clip(num_frames), 8.0))
    assert len(found.frames) == num_frames
    assert found.frame_rate == pytest.approx(8.0, rel=0.05), "gif delays are hundredths of a second"


@pytest.mark.parametrize("frame_rate", [0.5, 7.5, 12, 23.976, 24, 25, 30, 50])
@pytest.mark.parametrize("name", ["clip.mp4", "clip.webm", "clip.gif"])
def test_frame_rates_come_back(
    tmp_path: Path, make_clip: Callable[..., np.ndarray], name: str, frame_rate: float
) -> None:
    found = read_video(write_video(tmp_path / name, make_clip(17), frame_rate))
    assert found.frame_rate == pytest.approx(frame_rate, rel=3e-3)
    assert len(found.frames) == 17
    assert found.notes == ()


@pytest.mark.parametrize("name", ["clip.mp4", "clip.webm", "clip.gif", "clip/"])
def test_frames_that_stand_still_are_all_kept(tmp_path: Path, name: str) -> None:
    still = np.full((17, 16, 16, 3), 100, np.uint8)
    assert read_video(write_video(f"{tmp_path}/{name}", still, 8.0)).frames.shape == still.shape


@pytest.mark.parametrize("name", ["clip.webm", "clip.gif", "clip/"])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (31, 47), (2, 3)])
def test_odd_sizes(tmp_path: Path, make_clip: Callable[..., np.ndarray], name: str, height: int, width: int) -> None:
    frames = make_clip(3)[:, :height, :width]
    assert read_video(write_video(f"{tmp_path}/{name}", frames, 8.0)).frames.shape == frames.shape


def test_mp4_refuses_odd_sizes_and_names_the_nearest(tmp_path: Path, make_clip: Callable[..., np.ndarray]) -> None:
    with pytest.raises(OutputError, match=r"width=47 is odd.*use 46 or 48"):
        write_video(tmp_path / "clip.mp4", make_clip(3)[:, :, :47], 8.0)
    with pytest.raises(OutputError, match=r"height=1 is odd.*use 2"):
        write_video(tmp_path / "clip.mp4", make_clip(3)[:, :1, :1], 8.0)
    assert list(tmp_path.iterdir()) == []


def test_probe_reads_the_header(tmp_path: Path, clip: np.ndarray) -> None:
    info = probe(write_video(tmp_path / "clip.mp4", clip, 12.0, {"seed": 1}))
    assert (info.container, info.codec, info.height, info.width) == ("mp4", "h264", 32, 48)
    assert (info.num_frames, info.frame_rate, info.metadata) == (9, 12.0, {"seed": 1})


def test_a_clip_without_metadata_says_so(tmp_path: Path, clip: np.ndarray) -> None:
    for name in NAMES[:4]:
        assert read_metadata(write_video(f"{tmp_path}/{name}", clip, 8.0)) is None


def test_max_frames_reads_the_start(tmp_path: Path, clip: np.ndarray) -> None:
    for name in NAMES[:4]:
        path = write_video(f"{tmp_path}/{name}", clip, 8.0)
        whole, part = read_video(path), read_video(path, max_frames=4)
        assert np.array_equal(part.frames, whole.frames[:4])
        assert part.frame_rate == 8.0
        assert len(read_video(path, max_frames=100).frames) == 9
    with pytest.raises(RequestError, match="max_frames=0 must be 1 or more"):
        read_video(path, max_frames=0)


@pytest.mark.parametrize("rate", [0, -8, math.nan, math.inf, 1e9])
def test_impossible_frame_rates(tmp_path: Path, clip: np.ndarray, rate: float) -> None:
    with pytest.raises(OutputError, match="frame_rate="):
        write_video(tmp_path / "clip.mp4", clip, rate)
    assert list(tmp_path.iterdir()) == []


def test_a_gif_refuses_rates_it_cannot_show(tmp_path: Path, clip: np.ndarray) -> None:
    with pytest.raises(OutputError, match=r"frame_rate=60.*at most 50"):
        write_video(tmp_path / "clip.gif", clip, 60)


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((0, 8, 8, 3), np.uint8),
        np.zeros((2, 8, 8, 4), np.uint8),
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((2, 8, 8, 3), np.float32),
    ],
)
def test_frames_of_another_kind(tmp_path: Path, frames: np.ndarray) -> None:
    with pytest.raises(ShapeError):
        write_video(tmp_path / "clip.mp4", frames, 8.0)
    assert list(tmp_path.iterdir()) == []


def test_metadata_must_be_json(tmp_path: Path, clip: np.ndarray) -> None:
    for bad in ({"scale": math.nan}, {"path": tmp_path}):
        with pytest.raises(RequestError, match="metadata"):
            write_video(tmp_path / "clip.mp4", clip, 8.0, bad)
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(), st.text(st.characters(exclude_categories=())) | st.integers() | st.booleans()))
def test_any_text_survives_the_comment(metadata: dict[str, str]) -> None:
    comment = dump_comment(metadata)
    assert comment.isascii()
    assert "\n" not in comment
    assert load_comment(comment) == metadata


def test_foreign_comments_are_no_metadata() -> None:
    for text in (None, "", "made with love", "[1, 2]", "{broken", "3", "{" * 10_000):
        assert load_comment(text) is None


def test_folders_are_checked(tmp_path: Path, clip: np.ndarray) -> None:
    folder = write_video(f"{tmp_path}/clip/", clip, 8.0)
    (folder / "0004.png").rename(folder / "taken.txt")
    with pytest.raises(MediaError, match="lacks the frames between number 3 and number 5"):
        read_video(folder)
    (folder / "taken.txt").rename(folder / "0004.png")
    (folder / "0008.png").unlink()
    with pytest.raises(MediaError, match=r"holds 8 frames, its metadata\.json says 9"):
        read_video(folder)
    (folder / "metadata.json").unlink()
    assert read_video(folder).notes == ("The folder states no frame rate; 24 was assumed.",)
    (folder / "metadata.json").write_text("{")
    with pytest.raises(MediaError, match=r"metadata\.json is not JSON"):
        read_video(folder)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(MediaError, match=r"without a single \.png"):
        read_video(empty)
