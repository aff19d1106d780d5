"""Files that are put in place: their mode is what the umask says, whoever wrote them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from vgen.io.files import follow_umask, part_of


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
