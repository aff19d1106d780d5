"""`vgen convert` both ways, and what it refuses before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vgen.hub.find import model_defaults, resolve_model

Run = Callable[..., Any]


def test_both_ways(tmp_path: Path, ltx_random: Callable[[str], Path], run_cli: Run) -> None:
    folder, file, again = ltx_random("0.9.5"), tmp_path / "ltx.safetensors", tmp_path / "again"
    done = run_cli("convert", folder, file)
    assert done.code == 0 and done.err.startswith("converting "), done.err
    assert f"ltx.safetensors: {file.stat().st_size / 1e6:.1f} MB" in done.out
    assert "no place in it" in done.out
    refused = run_cli("convert", folder, file)
    assert refused.code == 2
    assert "exists already" in refused.err and "--overwrite" in refused.err
    before = file.read_bytes()
    assert run_cli("convert", folder, file, "--overwrite").code == 0
    assert file.read_bytes() == before
    done = run_cli("convert", file, again, "--text-encoder", folder)
    assert done.code == 0 and done.err.startswith("converting "), done.err
    assert resolve_model(again) == again
    assert (again / "tokenizer" / "tokenizer_config.json").is_file()
    (again / "stale").touch()
    refused = run_cli("convert", file, again)
    assert (refused.code, (again / "stale").exists()) == (2, True)
    done = run_cli("convert", file, again, "--overwrite")
    assert "no text encoder" in done.out
    assert not (again / "stale").exists() and not (again / "tokenizer").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "ltx-0.9.5", "ltx.safetensors"]


def test_a_renamed_file_may_be_told(
    tmp_path: Path, ltx_original: Callable[..., tuple[Path, Path]], run_cli: Run
) -> None:
    _, file = ltx_original("0.9.5")
    assert run_cli("convert", file, tmp_path / "a").code == 0
    assert model_defaults(tmp_path / "a")["num_inference_steps"] == 40
    assert run_cli("convert", file, tmp_path / "b", "--version", "ltx-2b-0.9.8-distilled").code == 0
    assert len(model_defaults(tmp_path / "b")["allowed_inference_steps"]) == 8
    refused = run_cli("convert", file, tmp_path / "c", "--version", "0.9.9")
    assert refused.code == 2
    assert "Known are ltx-2b-0.9.0, " in refused.err


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("sprites", "out"), "a folder becomes a file that ends in .safetensors"),
        (("sprites", "out.safetensors"), "config has "),
        (("sprites", "no/out.safetensors"), "the folder no does not exist"),
        (("sprites", "out.safetensors", "--text-encoder", "x"), "for the way from a file to a folder"),
        (("nothing", "out.safetensors"), "model='nothing' is not known"),
    ],
)
def test_refusals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_cli: Run, words: tuple[str, ...], what: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run_cli("convert", *words)
    assert (done.code, done.out) == (2, "")
    assert what in done.err
    assert list(tmp_path.iterdir()) == []
