"""The values stored for `test_fingerprints.py` and `test_fingerprints_training.py`, and how they are compared."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from vgen.pipelines import TextToVideoPipeline

STORED = Path(__file__).with_name("fingerprints.json")
WRITE = "VGEN_WRITE_FINGERPRINTS"


class Stored:
    """The values of `fingerprints.json`: compared with, or with --write replaced."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = json.loads(STORED.read_text()) if STORED.is_file() else {}

    def check(self, key: str, made: Any, tolerance: float = 0.0, relative: float = 0.0) -> None:
        """Fail with every place where `made` is not what is stored under `key`."""
        made = json.loads(json.dumps(made))
        if os.environ.get(WRITE):
            self.values[key] = made
            rows = (f"{json.dumps(name)}: {json.dumps(self.values[name])}" for name in sorted(self.values))
            STORED.write_text("{\n" + ",\n".join(rows) + "\n}\n")
            return
        assert key in self.values, f"{key}: nothing is stored; run with --write"
        found = list(differences(self.values[key], made, tolerance, relative))
        listed = "\n  ".join(found[:12])
        assert not found, f"{key}: {len(found)} differences (place: stored -> now):\n  {listed}"


def differences(stored: Any, made: Any, tolerance: float, relative: float, place: str = "") -> Iterator[str]:
    """Places where two JSON values differ, numbers by more than the tolerances."""
    if isinstance(stored, dict) and isinstance(made, dict):
        for name in sorted({*stored, *made}):
            if name not in made or name not in stored:
                yield f"{place}.{name}: {'gone' if name in stored else 'new'}"
            else:
                yield from differences(stored[name], made[name], tolerance, relative, f"{place}.{name}")
    elif isinstance(stored, list) and isinstance(made, list):
        if all(isinstance(entry, str) for entry in stored + made):
            yield from (f"{place}: {name!r} is gone" for name in stored if name not in made)
            yield from (f"{place}: {name!r} is new" for name in made if name not in stored)
        elif len(stored) != len(made):
            yield f"{place}: length {len(stored)} -> {len(made)}"
        else:
            for index, pair in enumerate(zip(stored, made, strict=True)):
                yield from differences(*pair, tolerance, relative, f"{place}[{index}]")
    elif isinstance(stored, float) and isinstance(made, float):
        if not abs(stored - made) <= tolerance + relative * abs(stored):
            yield f"{place}: {stored} -> {made}"
    elif stored != made or type(stored) is not type(made):
        yield f"{place}: {stored!r} -> {made!r}"


@pytest.fixture(scope="session")
def stored() -> Stored:
    """What fingerprints.json holds."""
    return Stored()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """torch computes on one thread."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pipe(tiny_pipeline_folder: Path) -> TextToVideoPipeline:
    """The tiny model's pipeline, without a progress bar; one per file, whose tests may not change it."""
    from vgen.pipelines import TextToVideoPipeline

    pipeline = TextToVideoPipeline.from_pretrained(tiny_pipeline_folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
