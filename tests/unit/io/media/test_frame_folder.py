"""Folders of frames: in natural order, whole, and nothing in them that is not meant."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vgen.errors import MediaError
from vgen.io.media.codec.stream import FootageStream
from vgen.io.media.frame_folder import frame_files
from vgen.io.media.video import read_video


def _folder(path: Path, names: list[str]) -> Path:
    """Frames that say their place in `names` by their grey."""
    path.mkdir()
    for place, name in enumerate(names):
        Image.new("RGB", (8, 6), (10 * place,) * 3).save(path / name, "PNG")
    return path


@pytest.mark.parametrize(
    "names",
    [
        [f"{k:04d}.png" for k in range(12)],
        [f"{k}.png" for k in range(1, 13)],
        [f"frame-{k}.PNG" for k in range(7, 19)],
        [f"out_{k:05d}_.png" for k in range(8, 20)],
        [f"shot2_{k}_30fps.png" for k in range(98, 110)],
        [f"2024-05-17 take 3 ({k}).png" for k in range(12)],
        [f"0x1_{k}.png" for k in range(12)],
        ["only.png"],
        ["1.png"],
    ],
    ids=lambda names: names[0],
)
def test_order_is_that_of_the_number_that_varies(tmp_path: Path, names: list[str]) -> None:
    folder = _folder(tmp_path / "frames", names)
    assert [file.name for file in frame_files(folder)] == names
    found = read_video(folder).frames
    assert found[:, 0, 0, 0].tolist() == [10 * k for k in range(len(names))]
    assert np.array_equal(np.stack(list(FootageStream(folder))), found)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a_0001.png", "a_0002.png", "b_0003.png"], r"several names: a_0001\.png and b_0003\.png"),
        (["0001.png", "0002.png", "mask.png"], r"several names: 0001\.png and mask\.png"),
        (["a.png", "b.png"], r"several names: a\.png and b\.png"),
        (["1.png", "01.png"], r"frame number 1 twice: 01\.png and 1\.png"),
        (["0001.png", "0003.png"], r"between number 1 and number 3 \(0001\.png, 0003\.png\)"),
        (["out_00008_.png", "out_00010_.png"], r"between number 8 and number 10 \(out_00008_\.png"),
        (["a1_001.png", "a1_002.png", "a2_003.png"], r"differ in several numbers: a1_001\.png and a2_003\.png"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_names_that_do_not_fit_are_named(tmp_path: Path, names: list[str], message: str) -> None:
    folder = _folder(tmp_path / "frames", names)
    with pytest.raises(MediaError, match=message):
        read_video(folder)
    with pytest.raises(MediaError, match=message):
        FootageStream(folder)


def test_strays_are_named(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "frames", ["0.png", "1.png"])
    Image.new("RGB", (8, 6)).save(folder / "2.jpg")
    with pytest.raises(MediaError, match=r"other pictures \(2\.jpg\)"):
        read_video(folder)


def test_hidden_files_and_files_of_other_kinds_are_ignored(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "frames", ["0.png", "1.png"])
    for name in ("._0.png", "._1.png", ".DS_Store", "Thumbs.db", "notes.txt"):
        (folder / name).write_bytes(b"\x00\x05\x16\x07")
    (folder / "more.png").mkdir()
    (folder / "metadata.json").write_text(json.dumps({"frame_rate": 12.0, "num_frames": 2}))
    found = read_video(folder)
    assert (len(found.frames), found.frame_rate, found.notes) == (2, 12.0, ())


def test_frames_with_alpha_show_the_background(tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for place in range(2):
        Image.new("RGBA", (8, 6), (0, 200, 0, 0)).save(folder / f"{place}.png")
    assert (read_video(folder).frames == 255).all()
    assert (read_video(folder, background=(0, 0, 0)).frames == 0).all()


def test_frames_of_another_size_are_named(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "frames", ["0.png", "1.png"])
    Image.new("RGB", (8, 8)).save(folder / "2.png")
    with pytest.raises(MediaError, match=r"2\.png is 8 x 8, the first frame 8 x 6"):
        read_video(folder)
