"""Clips in VBench's layout: their names, and the command that makes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vgen.errors import RequestError
from vgen.io.media.codec.probe import probe, read_metadata
from vgen.training.evaluate.vbench import sprite_prompts, vbench_clips


def test_names_are_the_prompts_word_for_word() -> None:
    prompts = ["A 3D model of a 1800s victorian house.", "a dog, running - fast"]
    clips = vbench_clips(prompts, seed=7)
    assert [clip.name for clip in clips[:5]] == [f"A 3D model of a 1800s victorian house.-{i}.mp4" for i in range(5)]
    assert clips[5].name == "a dog, running - fast-0.mp4"
    assert [clip.seed for clip in clips] == list(range(7, 17))
    assert [clip.sample for clip in clips] == [0, 1, 2, 3, 4] * 2


def test_names_are_safe_and_differ() -> None:
    prompts = ["../up/and\\away", ".hidden", "x" * 400, "x" * 401, "é" * 300, "a?b", "a*b", "A?B"]
    names = [clip.name for clip in vbench_clips(prompts, 0, samples=12)]
    assert len({name.casefold() for name in names}) == len(names) == 96
    for name in names:
        assert len(name.encode()) <= 255 - 18
        assert Path(name).name == name and not name.startswith(".") and "\\" not in name
        assert name.endswith(".mp4")


@pytest.mark.parametrize(
    ("prompts", "message"),
    [([], "at least one"), (["a", " "], "prompt 2 is empty"), (["a", "b", "a"], "prompt 3 .* twice")],
)
def test_prompts_that_cannot_name_a_clip(prompts: list[str], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        vbench_clips(prompts, 0)


def test_sprite_prompts_are_all_different() -> None:
    prompts = sprite_prompts(1, 40)
    assert len(set(prompts)) == 40
    assert sprite_prompts(1, 10) == prompts[:10]


def test_an_export_can_go_on_and_keeps_its_requests(tiny_pipeline_folder: Path, tmp_path: Path, run_cli: Any) -> None:
    (tmp_path / "prompts.txt").write_text("a red circle\n\na/b\n")
    words = ("evaluate", "--model", tiny_pipeline_folder, "--prompts", tmp_path / "prompts.txt", "--samples", "2")
    folder = tmp_path / "vbench"
    done = run_cli(*words, "--export-vbench", folder, "--seed", "3")
    assert done.code == 0, done.err
    names = ["a red circle-0.mp4", "a red circle-1.mp4", "a_b-0.mp4", "a_b-1.mp4"]
    assert sorted(path.name for path in folder.iterdir()) == names
    table = json.loads((tmp_path / "vbench.prompts.json").read_text())
    assert table[str(folder / "a_b-1.mp4")] == "a/b" and len(table) == 4
    told = read_metadata(folder / "a_b-1.mp4")
    assert told is not None and (told["prompt"], told["seed"]) == ("a/b", 6)
    assert probe(folder / "a red circle-0.mp4").num_frames == 9
    times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    (folder / "a red circle-1.mp4").unlink()
    assert run_cli(*words, "--export-vbench", folder, "--seed", "3").code == 0
    after = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert {name for name in names if after[name] != times[name]} == {"a red circle-1.mp4"}
    other = run_cli(*words, "--export-vbench", folder, "--seed", "4")
    assert other.code == 2 and "was made by another request" in other.err
    (folder / "notes.txt").touch()
    stray = run_cli(*words, "--export-vbench", folder, "--seed", "3")
    assert stray.code == 2 and "holds 'notes.txt'" in stray.err


def test_what_an_export_refuses(paper_model: Path, tmp_path: Path, run_cli: Any) -> None:
    for words, message in (
        (("--export-vbench", tmp_path / "a", "--prompts", tmp_path / "no.txt"), "there is no such file"),
        (("--export-vbench", tmp_path / "no" / "a"), "does not exist"),
        (("--export-vbench", tmp_path / "a", "-o", tmp_path / "scores.json"), "leave the options for scores out"),
        (("--prompts", tmp_path / "no.txt"), "--prompts is for --export-vbench"),
        (("--clip-model", tmp_path), "has no config.json"),
        (("--fvd-model", tmp_path / "no.pt"), "FVD needs"),
        (("--lpips", tmp_path), "LPIPS needs its weights"),
    ):
        done = run_cli("evaluate", "--model", paper_model, *words)
        assert done.code == 2, (words, done.err)
        assert message in done.err
    assert not (tmp_path / "a").exists()
