"""Files that are put in place: whole or not at all, with the mode that the umask says, whoever wrote them."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from vgen.errors import OutputError
from vgen.io.files import follow_umask, part_of, write_json, write_text


@pytest.fixture(params=[0o022, 0o002, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_finished_file_has_the_mode_of_the_umask(tmp_path: Path, umask: int) -> None:
    with part_of(tmp_path / "a.safetensors", overwrite=False) as part:
        save_file({"a": np.zeros(3)}, part)
    assert _mode(tmp_path / "a.safetensors") == 0o666 & ~umask
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_so_have_the_files_of_a_folder_and_links_stay_as_they_are(tmp_path: Path, umask: int) -> None:
    theirs = tmp_path / "theirs"
    theirs.write_bytes(b"weights of somebody else")
    theirs.chmod(0o600)
    with part_of(tmp_path / "folder", overwrite=False, folder=True) as part:
        (part / "vae").mkdir()
        save_file({"a": np.zeros(3)}, part / "vae" / "a.safetensors")
        os.link(theirs, part / "linked")
        (part / "run").write_text("#!/bin/sh")
        (part / "run").chmod(0o755)
    modes = {path.name: _mode(path) for path in (tmp_path / "folder").rglob("*") if path.is_file()}
    assert modes == {"a.safetensors": 0o666 & ~umask, "linked": 0o600, "run": 0o755}


def test_a_single_file_can_follow(tmp_path: Path, umask: int) -> None:
    save_file({"a": np.zeros(3)}, tmp_path / "a.safetensors")
    follow_umask(tmp_path / "a.safetensors")
    assert _mode(tmp_path / "a.safetensors") == 0o666 & ~umask


def test_text_is_written_once_and_names_that_are_no_utf8_come_back(tmp_path: Path) -> None:
    file = tmp_path / "new" / "facts.json"
    content = {"name": "ä\udcff", "count": 2}
    assert write_json(file, content) is True and write_json(file, content) is False
    assert json.loads(file.read_bytes()) == content
    assert write_text(file, "other\n") is True and file.read_text() == "other\n"


def test_a_disk_that_fills_up_leaves_the_old_file_and_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "facts.json"
    write_json(file, {"old": 1})

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"the disk is full \(at most 14 bytes needed, [\d,]+ bytes are free\)"):
        write_json(file, {"new": 2})
    assert json.loads(file.read_bytes()) == {"old": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["facts.json"]
