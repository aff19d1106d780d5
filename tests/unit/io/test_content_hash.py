"""The hash that names a file's content: whole, remembered, and never stale."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vgen.io import content_hash as module
from vgen.io.content_hash import content_hash, content_hashes, read_hash
from vgen.io.walk import walk_files

DAY = 86_400 * 10**9


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of its own, and files of any age and size that are remembered."""
    monkeypatch.setenv("VGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "REMEMBERED_FROM", 1)
    monkeypatch.setattr(module, "_SETTLED", -DAY)
    monkeypatch.setattr(module, "_remembered", {})
    return tmp_path / "cache" / "hashes.jsonl"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every file that is read."""
    counted: list[int] = []
    whole = hashlib.file_digest

    def counting(stream: object, name: str) -> object:
        counted.append(1)
        return whole(stream, name)  # type: ignore[arg-type]

    monkeypatch.setattr(hashlib, "file_digest", counting)
    return counted


def _file(tmp_path: Path, content: bytes = b"weights", name: str = "file") -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    return path


def _restart(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a new process knows."""
    monkeypatch.setattr(module, "_remembered", {})


def test_a_file_is_read_once(tmp_path: Path, reads: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    path = _file(tmp_path)
    assert content_hash(path) == hashlib.sha256(b"weights").hexdigest()
    assert content_hash(path) == content_hash(path)
    _restart(monkeypatch)
    link = tmp_path / "link"
    link.symlink_to(path)
    assert content_hash(link) == hashlib.sha256(b"weights").hexdigest()
    assert len(reads) == 1
    assert read_hash(path) == content_hash(path)
    assert len(reads) == 2, "what is compared with a manifest is read in any case"


def test_a_change_in_place_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _file(tmp_path)
    before, status = content_hash(path), path.stat()
    with path.open("r+b") as stream:
        stream.write(b"W")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # as rsync --inplace --times leaves it
    _restart(monkeypatch)
    assert content_hash(path) == hashlib.sha256(b"Weights").hexdigest() != before


def test_another_file_under_the_name_is_seen(tmp_path: Path) -> None:
    path, other = _file(tmp_path), _file(tmp_path, b"another", "other")
    content_hash(path)
    os.replace(other, path)
    assert content_hash(path) == hashlib.sha256(b"another").hexdigest()


def test_a_file_written_just_now_is_not_remembered(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SETTLED", DAY)
    path = _file(tmp_path)
    content_hash(path)
    assert not store.exists()


def test_a_damaged_store_counts_for_nothing(
    tmp_path: Path, store: Path, reads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _file(tmp_path)
    first = content_hash(path)
    cut = store.read_bytes().strip()[:-10]
    store.write_bytes(b"\xff\x00\n[1]\nnull\n[[], 2, 3]\n" + b"[" * 100_000 + b"\n" + cut)
    _restart(monkeypatch)
    assert content_hash(path) == first
    assert len(reads) == 2
    _restart(monkeypatch)
    assert content_hash(path) == first
    assert len(reads) == 2, "the line after one that was cut off is whole"


def test_a_store_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VGEN_CACHE", str(_file(tmp_path, name="cache-is-a-file")))
    assert content_hash(_file(tmp_path)) == hashlib.sha256(b"weights").hexdigest()


def test_the_store_stays_small(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ENTRIES", 4)
    paths = [_file(tmp_path, bytes([number]), f"file{number}") for number in range(20)]
    for path in paths:
        _restart(monkeypatch)
        content_hash(path)
    lines = [json.loads(line) for line in store.read_text().split("\n") if line]
    assert len(lines) <= 2 * 4 + 1
    assert lines[-1][0] == str(paths[-1])


def test_processes_share_the_store(tmp_path: Path, store: Path) -> None:
    paths = [_file(tmp_path, bytes([number]), f"file{number}") for number in range(40)]
    script = (
        "import sys; from pathlib import Path; from vgen.io import content_hash as m;"
        "m.REMEMBERED_FROM, m._SETTLED = 1, -10**18;"
        "[m.content_hash(Path(name)) for name in sys.argv[1:]]"
    )
    halves = (paths[:25], paths[15:])
    running = [subprocess.Popen([sys.executable, "-c", script, *map(str, half)]) for half in halves]
    assert [process.wait(60) for process in running] == [0, 0]
    lines = [json.loads(line) for line in store.read_text().split("\n") if line]
    assert {path for path, _, _ in lines} == {str(path) for path in paths}


def test_long_reading_is_announced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [_file(tmp_path, bytes(600), "a"), _file(tmp_path, bytes(700), "b")]
    monkeypatch.setattr(module, "_SAID_FROM", 1000)
    with caplog.at_level(logging.WARNING):
        content_hashes(paths)
        content_hashes(paths)
    assert len(caplog.records) == 1


def test_links_are_walked_once_and_end(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    for folder in (root / "real", outside / "deep"):
        folder.mkdir(parents=True)
    _file(root / "real", name="a.mp4")
    _file(outside / "deep", name="b.mp4")
    (root / "again").symlink_to(root / "real")
    (root / "linked").symlink_to(outside)
    (outside / "back").symlink_to(root)
    (root / "c.mp4").symlink_to(outside / "deep" / "b.mp4")
    (root / "nothing.mp4").symlink_to(tmp_path / "nowhere")
    names = [path.relative_to(root).as_posix() for path in walk_files(root)]
    assert names == ["c.mp4", "linked/deep/b.mp4", "nothing.mp4", "real/a.mp4"]
