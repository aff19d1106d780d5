"""Figures of the shipped model name the weights that they were measured on: these must be the shipped ones."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path

import pytest

from vgen.hub.find import model_hash

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMED = re.compile(r"(earlier model, )?\b(?:hash|weights) ([0-9a-f]{12})\b")
"""`hash 815cd6b567df`; `earlier model, hash ...` where a result is kept that nobody would measure again."""


@pytest.fixture(scope="module")
def shipped() -> str:
    return model_hash(Path(str(files("vgen.assets") / "sprites")))


def test_figures_are_of_the_shipped_weights(shipped: str) -> None:
    stale, current = [], set()
    for page in PAGES:
        for earlier, named in NAMED.findall(" ".join(page.read_text(encoding="utf-8").split())):
            if not earlier:
                current.add(page.name)
            if bool(earlier) == (named == shipped[:12]):
                stale.append(f"{page.name}: {named}")
    assert stale == [], f"measured on other weights than the shipped ones, {shipped[:12]}"
    assert {"README.md", "speed.md", "few_steps.md"} <= current, "these pages name the weights of their figures"


@pytest.mark.parametrize("name", ["sprites-256.json", "sprites-long.json"])
def test_scores_are_of_the_shipped_weights(name: str, shipped: str) -> None:
    assert json.loads((ROOT / "docs" / "scores" / name).read_text())["hash"] == shipped
