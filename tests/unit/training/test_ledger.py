"""A killed evaluation loses nothing, and results of another one are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vgen.errors import RequestError
from vgen.training.ledger import Ledger

ABOUT = {"model": "abc", "settings": {"guidance_scale": 4.0}}


class Maker:
    """Measures clips, and remembers which."""

    def __init__(self, dies_at: int | None = None) -> None:
        self.made: list[int] = []
        self.dies_at = dies_at

    def __call__(self, part: range) -> list[dict[str, Any]]:
        if self.dies_at in part:
            raise KeyboardInterrupt
        self.made += part
        return [{"value": number, "lost": None, "places": (1.5, number)} for number in part]


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "scores.parts.jsonl"
    first = Maker(dies_at=4)
    with pytest.raises(KeyboardInterrupt):
        Ledger(path, ABOUT).rows("clips", 7, 2, first)
    assert first.made == [0, 1, 2, 3]
    second, ledger = Maker(), Ledger(path, ABOUT)
    rows = ledger.rows("clips", 7, 2, second)
    assert second.made == [4, 5, 6]
    assert rows == Ledger().rows("clips", 7, 2, Maker()), "kept rows are those of an evaluation that was not killed"
    assert [row["value"] for row in ledger.rows("others", 2, 2, second)] == [0, 1], "names are told apart"
    ledger.close()
    assert not path.exists()


def test_a_line_cut_off_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "scores.parts.jsonl"
    Ledger(path, ABOUT).rows("clips", 6, 2, Maker())
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    again = Maker()
    Ledger(path, ABOUT).rows("clips", 6, 2, again)
    assert again.made == [4, 5]
    nothing = Maker()
    assert len(Ledger(path, ABOUT).rows("clips", 6, 2, nothing)) == 6
    assert nothing.made == [], "the new line stands after a whole one"


def test_results_of_another_evaluation_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "scores.parts.jsonl"
    Ledger(path, ABOUT).rows("clips", 2, 2, Maker())
    with pytest.raises(RequestError, match=r"model 'abc' there, 'xyz' now.*remove the file"):
        Ledger(path, {**ABOUT, "model": "xyz"})


def test_the_time_left_follows_what_is_new_and_what_is_to_come(tmp_path: Path) -> None:
    path, now, said = tmp_path / "scores.parts.jsonl", [0.0], []

    def make(part: range) -> list[dict[str, Any]]:
        now[0] += 10.0 * len(part)
        return [{} for _ in part]

    Ledger(path, ABOUT, clock=lambda: now[0]).rows("clips", 4, 2, make)
    expected = {"clips": (8, 1.0), "long clips": (2, 5.0)}
    ledger = Ledger(path, ABOUT, expected, said.append, lambda: now[0])
    assert ledger.seconds == 40.0
    ledger.rows("clips", 8, 2, make)
    assert said[1] == "clips: 4 of 8, 22% of all"
    assert said[3] == "clips: 8 of 8, 44% of all, 0:01:40 left", "40 s for 4; 2 of 5 times the cost are left"
    assert ledger.seconds == 80.0
