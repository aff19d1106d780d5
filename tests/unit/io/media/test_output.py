"""Where a clip may go, and that it gets there whole or not at all."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vgen.errors import OutputError
from vgen.io.files import part_of
from vgen.io.media.codec import write
from vgen.io.media.output import OutputKind, check_output, output_kind
from vgen.io.media.video import read_video, write_video


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.mp4", OutputKind.MP4),
        ("A.MP4", OutputKind.MP4),
        ("a.webm", OutputKind.WEBM),
        ("x.y/a.gif", OutputKind.GIF),
        ("frames", OutputKind.FOLDER),
        ("v1.5/", OutputKind.FOLDER),
    ],
)
def test_the_ending_decides(name: str, kind: OutputKind) -> None:
    assert output_kind(name) is kind


@pytest.mark.parametrize("name", ["a.avi", "a.png", "a.mp4.part", "", "a\0.mp4", "a\udc80.mp4", "\udc80/a.mp4"])
def test_other_endings_are_refused(name: str) -> None:
    with pytest.raises(OutputError, match="output="):
        output_kind(name)


def test_checks_before_anything_is_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "there.mp4").touch()
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "dangling.mp4").symlink_to(tmp_path / "nowhere")
    for name, message in {
        "missing/clip.mp4": "missing does not exist; make it first",
        "file/clip.mp4": "file is not a folder",
        "there.mp4": "there.mp4 exists already; use another name, or --overwrite",
        "dangling.mp4": "exists already",
        "folder.mp4": "is a folder; name a file in it",
        "file": "exists already and is not a folder",
        "x" * 300 + ".mp4": "cannot be written",
    }.items():
        with pytest.raises(OutputError, match=message):
            check_output(tmp_path / name)
    assert check_output(tmp_path / "there.mp4", overwrite=True) is OutputKind.MP4
    assert check_output(tmp_path / "new.mp4") is OutputKind.MP4


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a file system that nobody can write to")
def test_an_unwritable_folder() -> None:
    with pytest.raises(OutputError, match="the folder /proc cannot be written to"):
        check_output("/proc/clip.mp4")


def test_an_existing_output_is_untouched_without_overwrite(
    tmp_path: Path, clip: np.ndarray, nothing_left: Callable[..., None]
) -> None:
    for name in ("clip.mp4", "clip.gif"):
        (tmp_path / name).write_bytes(b"mine")
        with pytest.raises(OutputError, match="exists already"):
            write_video(tmp_path / name, clip, 8.0)
        assert (tmp_path / name).read_bytes() == b"mine"
        write_video(tmp_path / name, clip, 8.0, overwrite=True)
        assert len(read_video(tmp_path / name).frames) == 9
    nothing_left("clip.mp4", "clip.gif")


def test_folders_of_frames_are_replaced_only_if_they_are_ours(
    tmp_path: Path, clip: np.ndarray, nothing_left: Callable[..., None]
) -> None:
    (tmp_path / "clip").mkdir()
    write_video(f"{tmp_path}/clip/", clip, 8.0)
    with pytest.raises(OutputError, match="exists already"):
        write_video(f"{tmp_path}/clip/", clip[:3], 8.0)
    write_video(f"{tmp_path}/clip/", clip[:3], 8.0, overwrite=True)
    assert len(read_video(tmp_path / "clip").frames) == 3
    (tmp_path / "clip" / "thesis.txt").touch()
    with pytest.raises(OutputError, match="holds other things than frames; it is not replaced"):
        write_video(f"{tmp_path}/clip/", clip, 8.0, overwrite=True)
    nothing_left("clip")


@pytest.mark.parametrize("folder", [False, True])
def test_of_two_writers_one_wins(tmp_path: Path, folder: bool, nothing_left: Callable[..., None]) -> None:
    """Both have passed every check when both come to the last step."""
    barrier, results = threading.Barrier(4), []

    def write(number: int) -> None:
        try:
            with part_of(tmp_path / "clip", overwrite=False, folder=folder) as part:
                (part / "0000.png" if folder else part).write_text(str(number))
                barrier.wait()
            results.append("won")
        except OutputError as error:
            results.append(str(error))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results.count("won") == 1
    assert all("exists already" in result for result in results if result != "won")
    nothing_left("clip")


def test_a_file_system_without_links_has_one_winner_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing_left: Callable[..., None]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    with part_of(tmp_path / "clip", overwrite=False) as part:
        part.write_text("first")
    with pytest.raises(OutputError, match="exists already"), part_of(tmp_path / "clip", overwrite=False) as part:
        part.write_text("second")
    assert (tmp_path / "clip").read_text() == "first"
    nothing_left("clip")


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError])
@pytest.mark.parametrize("folder", [False, True])
def test_nothing_is_left_after_an_interrupt(tmp_path: Path, error: type[BaseException], folder: bool) -> None:
    with pytest.raises(error), part_of(tmp_path / "clip", overwrite=False, folder=folder) as part:
        (part / "0000.png" if folder else part).write_text("half")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk(tmp_path: Path) -> None:
    """A process that may write no file above 4 kB stands for a disk that is full."""
    script = (
        "import resource, signal, sys, numpy as np\n"
        "from vgen.errors import OutputError\n"
        "from vgen.io.media.video import write_video\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "frames = np.random.default_rng(0).integers(0, 255, (9, 64, 64, 3), dtype=np.uint8)\n"
        "for name in ('clip.mp4', 'clip.webm', 'clip.gif', 'clip/'):\n"
        "    try:\n"
        "        write_video(f'{sys.argv[1]}/{name}', frames, 8.0)\n"
        "    except OutputError as error:\n"
        "        print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    assert done.stdout.count("the disk is full (at most 110,592 bytes needed") == 4, done.stdout + done.stderr
    assert f"{tmp_path}/clip.mp4 could not be written" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_read_again_is_not_put_in_place(
    tmp_path: Path, clip: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = write._encode

    def lose_the_end(part: Path, *arguments: object) -> None:
        encode(part, *arguments)
        os.truncate(part, part.stat().st_size - 50)

    monkeypatch.setattr(write, "_encode", lose_the_end)
    with pytest.raises(OutputError, match=r"clip\.mp4 was not written well.*truncated"):
        write_video(tmp_path / "clip.mp4", clip, 8.0)

    def lose_a_frame(part: Path, kind: object, frames: np.ndarray, *arguments: object) -> None:
        encode(part, kind, frames[:-1], *arguments)

    monkeypatch.setattr(write, "_encode", lose_a_frame)
    with pytest.raises(OutputError, match=r"\(8, 32, 48, 3\) came back of \(9, 32, 48, 3\)"):
        write_video(tmp_path / "clip.mp4", clip, 8.0)
    assert list(tmp_path.iterdir()) == []
