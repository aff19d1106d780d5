"""Recipes that take over others."""

from __future__ import annotations

from pathlib import Path

import pytest

from vgen.errors import RequestError
from vgen.training.config.files import read_recipe

BASE = """
name: base
data: {tier: 1, emphasis: {circle: 2, bounce: 3}}
optimizer: {lr: 1.0e-3, betas: [0.9, 0.99]}
stages: [{steps: 1}, {steps: 2}]
seed: 5
"""


def _files(folder: Path, **contents: str) -> Path:
    for name, text in contents.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


def test_sections_are_taken_over_key_by_key_and_what_is_below_as_a_whole(tmp_path: Path) -> None:
    middle = "extends: base.yaml\nname: middle\ndata: {emphasis: {circle: 9}}\nnum_threads: 1\n"
    last = "extends: middle.yaml\nname: last\noptimizer: {lr: 2.0e-3}\nstages: [{steps: 7}]\nnum_threads: null\n"
    folder = _files(tmp_path, base=BASE, middle=middle, last=last)
    assert read_recipe(folder / "last.yaml") == {
        "name": "last",
        "data": {"tier": 1, "emphasis": {"circle": 9}},
        "optimizer": {"lr": 2.0e-3, "betas": [0.9, 0.99]},
        "stages": [{"steps": 7}],
        "seed": 5,
        "num_threads": None,
    }
    assert read_recipe(folder / "base.yaml")["data"]["emphasis"] == {"circle": 2, "bounce": 3}


def test_a_byte_order_mark_is_no_part_of_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: a\nobjective: {kind: flow}\n", encoding="utf-8-sig")
    assert read_recipe(tmp_path / "a.yaml")["name"] == "a"


def test_what_cannot_be_taken_over_is_said(tmp_path: Path) -> None:
    folder = _files(
        tmp_path,
        one="extends: two.yaml\n",
        two="extends: one.yaml\n",
        odd="extends: [one.yaml]\n",
        lost="extends: no.yaml\n",
    )
    with pytest.raises(RequestError, match=r"one\.yaml extends itself"):
        read_recipe(folder / "one.yaml")
    with pytest.raises(RequestError, match=r"odd\.yaml: extends must be the name of one file"):
        read_recipe(folder / "odd.yaml")
    with pytest.raises(RequestError, match=r"no\.yaml: there is no such file"):
        read_recipe(folder / "lost.yaml")
