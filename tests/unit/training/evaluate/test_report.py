"""The page of scores: every measured number with its interval, aim, ceiling and floors; what is unknown is said."""

from __future__ import annotations

import copy
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from vgen.errors import RequestError
from vgen.hub.find import resolve_model
from vgen.training.evaluate.evaluate import QUICK, _about, report_from
from vgen.training.evaluate.report import render, table, tier_lines

SCORES = Path(__file__).parents[4] / "docs" / "scores" / "sprites-256.json"
PAGES = {
    "sprites-256": "165fe21faf8c5301",
    "sprites-long": "73663c8b709d7421",
    "student-256": "3c8d01a8d3aa8fa9",
}
"""Hashes of the pages that the scores of docs/scores make."""
TRAINING: dict[str, Any] = {
    "recipe": "tasks", "recipe_sha256": "ab" * 32, "steps": 900, "total_steps": 1000, "seconds": 9000.0, "threads": 1,
    "device": "cpu",
    "from": {"vae": None, "init": {
        "recipe": "text", "recipe_sha256": "cd" * 32, "steps": 50, "total_steps": 50, "seconds": 60.0, "threads": 2,
        "device": "cpu", "from": {}}},
}  # fmt: skip


@pytest.fixture
def scores() -> dict[str, Any]:
    return json.loads(SCORES.read_text())


def test_the_known_limits_of_the_shipped_model_stand_on_its_page(scores: dict[str, Any]) -> None:
    folder = resolve_model("sprites")
    limits = (folder / "limits.md").read_text()
    assert scores["limits"] == limits
    assert _about(folder, {"model": "", "vgen": ""}, None, QUICK, 0)["limits"] == limits
    page = render(scores)
    assert f"## Known limits\n\n{limits.rstrip()}\n\n## How to read it" in page
    assert page == (folder / "README.md").read_text() == SCORES.with_suffix(".md").read_text()
    assert "Known limits" not in render({**scores, "limits": None})


def _row(page: str, name: str, tier: int = 1) -> list[str]:
    section = page.split(f"## Tier {tier}")[1].split("## Tier")[0]
    (line,) = (line for line in section.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_scores_of_an_older_version_are_shown_and_what_they_do_not_tell_is_unknown(scores: dict[str, Any]) -> None:
    newer = ("date", "device", "command", "training", "versions")
    older = copy.deepcopy({name: value for name, value in scores.items() if name not in newer})
    for tier in older["scores"].values():
        tier.pop("untrained", None)
        for part in tier.values():
            part.pop("intervals", None)
    page = render(older)
    assert scores["hash"] in page and "unknown: the folder holds no training.json" in page
    assert "| command | unknown |" in page and "on an unknown day" in page
    joint = scores["scores"]["tier 1"]["text_to_video"]["seen"]["joint"]
    row = _row(page, "text to video, seen: joint")
    assert row[1] == f"{100 * joint['mean']:.1f} %" and row[3] == "90 %: met" and row[6] == str(joint["count"])
    assert "shuffled captions" in row[5] and "still video" in row[5] and "untrained" not in row[5]
    assert _row(page, "VAE: PSNR")[2] == "unknown", "older scores have no interval of it"
    assert page.count("\n## Tier") == 2


def test_aims_are_missed_where_scores_lie_below_them(scores: dict[str, Any]) -> None:
    low = copy.deepcopy(scores)
    for tier, mean in (("tier 1", 0.89), ("tier 2", 0.80)):
        low["scores"][tier]["text_to_video"]["seen"]["joint"]["mean"] = mean
    low["scores"]["tier 1"]["vae"] |= {"psnr": 34.0, "object_psnr": 27.98}
    page = render(low)
    assert _row(page, "VAE: PSNR")[1:4:2] == ["34.0 dB", "34.0 dB: met"]
    assert _row(page, "VAE: PSNR on the objects' pixels")[1:4:2] == ["27.98 dB", "28.0 dB: **missed**"]
    assert _row(page, "text to video, seen: joint")[3] == "90 %: **missed**"
    assert _row(page, "text to video, seen: joint", 2)[3] == "80 %: met"
    between = low["scores"]["tier 1"]["interpolation"]
    between["error"]["mean"], between["linear_blend"]["mean"] = 1.4, 1.3
    assert "missed" in _row(render(low), "interpolation: centre of the middle frame")[3], "the blend is nearer"
    low["scores"]["tier 1"]["completion"]["psnr"] = low["scores"]["tier 1"]["completion"]["linear_blend"] - 0.1
    assert "missed" in _row(render(low), "completion: PSNR of the hidden part")[3]


def test_what_a_newer_report_tells_is_shown(scores: dict[str, Any]) -> None:
    joint = {"mean": 0.5, "low": 0.4, "high": 0.6, "count": 128}
    newer = {
        **scores, "date": "2026-01-02", "device": "cpu", "command": "vgen evaluate --tasks all", "training": TRAINING,
        "guidance": {"split": "validation", "prompts": 128, "chosen": 3.0, "joint": {"2": {"tier 1": joint},
                                                                                     "3": {"tier 1": joint}}},
    }  # fmt: skip
    tier = newer["scores"]["tier 1"]
    tier["vae"]["intervals"] = {"psnr": [35.0, 36.5]}
    tier["untrained"] = dict.fromkeys(("presence", "colour", "shape", "motion", "joint"), joint)
    page = render(newer)
    assert "`tasks` (recipe SHA-256 abababababababab), 900 of 1,000 steps, 2 h 30 min on cpu with 1 thread" in page
    assert "from the vae of an unknown run and the start of `text`" in page
    assert "1 min 0 s on cpu with 2 threads" in page
    assert "`vgen evaluate --tasks all`" in page and "2026-01-02" in page and "**3** was chosen" in page
    assert _row(page, "VAE: PSNR")[2] == "35.0 – 36.5 dB"
    assert _row(page, "text to video, seen: joint")[5].endswith("untrained 50.0 %")


def test_a_run_that_several_began_with_is_told_once(scores: dict[str, Any]) -> None:
    decoder = {**TRAINING, "recipe": "decoder", "from": {}}
    text = {**TRAINING, "recipe": "text", "from": {"vae": decoder}}
    page = render({**scores, "training": {**TRAINING, "from": {"vae": decoder, "init": text}}})
    assert page.count("900 of 1,000 steps") == 3 and page.count("`decoder`") == 3


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"model": "sprites"}')
    with pytest.raises(RequestError, match=r"other\.json holds no scores"):
        report_from(tmp_path / "other.json")
    assert report_from(SCORES).startswith("# sprites")


@pytest.mark.parametrize("name", ["sprites-256", "sprites-long", "student-256"])
def test_stored_scores_make_the_same_page_as_ever_and_all_of_it_is_on_the_screen(name: str) -> None:
    stored = json.loads((SCORES.parent / f"{name}.json").read_text())
    page = render(stored)
    assert hashlib.sha256(page.encode()).hexdigest()[:16] == PAGES[name]
    console = Console(width=250, file=io.StringIO(), markup=False)
    console.print(table(stored))
    screen = console.file.getvalue()
    for tier, scores in stored["scores"].items():
        lines = list(tier_lines(tier, scores))
        assert len(lines) >= 6
        for line in lines:
            row = next(row for row in screen.splitlines() if f" {line.measure} " in row)
            assert f"{line.score} ({line.interval})" in row if line.interval else line.score in row
            assert line.floors in screen and line.ceiling in screen
    assert [text in screen for text in ("track acceleration", "joint judged")] == [
        "text_to_video" in scores, "vae" in scores
    ]  # fmt: skip
