"""A killed evaluation loses nothing, and results of another one are refused."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from vgen.errors import RequestError
from vgen.training.evaluate.resumable import Job, Measurements, Row, measuring_pool

ABOUT = {"model": "abc", "settings": {"guidance_scale": 4.0}}


def measured(number: int) -> Row:
    return {"value": number, "lost": None, "places": (1.5, number)}


class Maker:
    """Makes clips, and remembers which."""

    def __init__(self, dies_at: int | None = None) -> None:
        self.made: list[int] = []
        self.dies_at = dies_at

    def __call__(self, part: range) -> list[Job]:
        if self.dies_at in part:
            raise KeyboardInterrupt
        self.made += part
        return [(number,) for number in part]


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "scores.parts.jsonl"
    first = Maker(dies_at=4)
    with pytest.raises(KeyboardInterrupt):
        Measurements(path, ABOUT).rows("clips", 7, 2, first, measured)
    assert first.made == [0, 1, 2, 3]
    second, kept = Maker(), Measurements(path, ABOUT)
    rows = kept.rows("clips", 7, 2, second, measured)
    assert second.made == [4, 5, 6]
    assert rows == Measurements().rows("clips", 7, 2, Maker(), measured), (
        "kept rows are those of an evaluation that was not killed"
    )
    assert [row["value"] for row in kept.rows("others", 2, 2, second, measured)] == [0, 1], "names are told apart"
    kept.close()
    assert not path.exists()


def test_a_line_cut_off_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "scores.parts.jsonl"
    Measurements(path, ABOUT).rows("clips", 6, 2, Maker(), measured)
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    again = Maker()
    Measurements(path, ABOUT).rows("clips", 6, 2, again, measured)
    assert again.made == [4, 5]
    nothing = Maker()
    assert len(Measurements(path, ABOUT).rows("clips", 6, 2, nothing, measured)) == 6
    assert nothing.made == [], "the new line stands after a whole one"


def test_results_of_another_evaluation_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "scores.parts.jsonl"
    Measurements(path, ABOUT).rows("clips", 2, 2, Maker(), measured)
    with pytest.raises(RequestError, match=r"model 'abc' there, 'xyz' now.*remove the file"):
        Measurements(path, {**ABOUT, "model": "xyz"})


def test_the_time_left_follows_what_is_new_and_what_is_to_come(tmp_path: Path) -> None:
    path, now, said = tmp_path / "scores.parts.jsonl", [0.0], []

    def make(part: range) -> list[Job]:
        now[0] += 10.0 * len(part)
        return [(number,) for number in part]

    Measurements(path, ABOUT, clock=lambda: now[0]).rows("clips", 4, 2, make, measured)
    planned = {"clips": (8, 1.0), "long clips": (2, 5.0)}
    kept = Measurements(path, ABOUT, planned, said.append, lambda: now[0])
    assert kept.seconds == 40.0
    kept.rows("clips", 8, 2, make, measured)
    assert said[0] == "clips: 4 of 8, 22% of all"
    assert said[2] == "clips: 8 of 8, 44% of all, 1 min 40 s left", "40 s for 4; 2 of 5 times the cost are left"
    assert kept.seconds == 80.0


def test_other_batches_and_another_place_go_on_with_what_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "scores.parts.jsonl"
    with pytest.raises(KeyboardInterrupt):
        Measurements(path, ABOUT, place="cuda").rows("clips", 9, 4, Maker(dies_at=8), measured)
    second, kept = Maker(), Measurements(path, ABOUT, place="cpu")
    assert list(kept.places) == ["cuda"]
    rows = kept.rows("clips", 12, 3, second, measured)
    assert second.made == [8, 9, 10, 11] and list(kept.places) == ["cuda", "cpu"]
    assert rows == Measurements().rows("clips", 12, 5, Maker(), measured)


def test_holes_are_filled_by_batches_of_clips_in_a_row(tmp_path: Path) -> None:
    path = tmp_path / "scores.parts.jsonl"
    Measurements(path, ABOUT).rows("clips", 9, 1, Maker(), measured)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:1] + lines[3:5] + lines[8:9]))  # clips 2, 3 and 7
    parts: list[range] = []
    rows = Measurements(path, ABOUT).rows(
        "clips", 9, 2, lambda part: parts.append(part) or [(i,) for i in part], measured
    )
    assert parts == [range(0, 2), range(4, 6), range(6, 7), range(8, 9)]
    assert [row["value"] for row in rows] == list(range(9))


def drawn(seed: int) -> Row:
    return {"value": float(np.random.default_rng(seed).random()), "process": os.getpid()}


def test_a_pool_measures_the_same_while_the_next_batch_is_made(tmp_path: Path) -> None:
    path, order = tmp_path / "scores.parts.jsonl", []

    def make(part: range) -> list[Job]:
        order.append(f"made {part.start}")
        return [(number,) for number in part]

    with measuring_pool(2) as pool:
        kept = Measurements(path, ABOUT, say=lambda text: order.append(text.partition(",")[0]), pool=pool)
        rows = kept.rows("clips", 7, 3, make, drawn)
        assert list(kept.map(drawn, [])) == []
    assert order == [
        "clips: 0 of 7", "made 0", "made 3", "clips: 3 of 7", "made 6", "clips: 6 of 7", "clips: 7 of 7"
    ]  # fmt: skip
    assert os.getpid() not in {row["process"] for row in rows}
    alone = Measurements().rows("clips", 7, 2, make, drawn)
    assert [row["value"] for row in rows] == [row["value"] for row in alone]
    assert Measurements(path, ABOUT).rows("clips", 7, 4, Maker(dies_at=0), drawn) == rows, "in their places in the file"


def test_an_error_of_a_worker_is_raised() -> None:
    with measuring_pool(1) as pool, pytest.raises(TypeError):
        Measurements(pool=pool).rows("clips", 2, 1, lambda part: [("no seed",)], drawn)
