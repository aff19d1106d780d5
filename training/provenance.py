"""What an exported model says about how it was trained: training.json, next to its model_index.json."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import torch

from vgen.hub.find import resolve_model
from vgen.io.files import write_json
from vgen.training.recipe import Recipe
from vgen.version import __version__

TRAINING: Final = "training.json"
ORIGINS: Final = ("vae", "init", "teacher", "model")
"""Keys of an objective that name what it takes weights from."""


def write_record(folder: Path, recipe: Recipe, log: Path, steps: int, processes: int = 1) -> None:
    """Say in a model's folder what made it.

    Args:
        folder: of the export.
        recipe: of the run.
        log: the run's log.jsonl.
        steps: that were trained.
        processes: that trained together.
    """
    write_json(folder / TRAINING, record(recipe, log, steps, processes))


def record(recipe: Recipe, log: Path, steps: int, processes: int = 1) -> dict[str, Any]:
    """What `write_record` writes.

    Returns:
        recipe, recipe_sha256 (see `recipe_hash`), steps, total_steps, seconds (of the steps, validation and checkpoints
        that led to the weights; what was cast away when a run went on from an earlier checkpoint does not count),
        threads, processes, device, mixed_precision, date, vgen, torch, and "from": the records of what it began with.
    """
    return {
        "recipe": recipe.name,
        "recipe_sha256": recipe_hash(recipe),
        "steps": steps,
        "total_steps": recipe.total_steps,
        "seconds": trained_seconds(log),
        "threads": torch.get_num_threads(),
        "processes": processes,
        "device": _device(recipe),
        "mixed_precision": "bf16" if recipe.autocasts else "no",
        "date": datetime.now(UTC).date().isoformat(),
        "vgen": __version__,
        "torch": torch.__version__,
        "from": {name: read_record(place) for name, place in origins(recipe).items()},
    }


def origins(recipe: Recipe) -> dict[str, Path]:
    """The folders that a recipe takes weights from, by the key that names them."""
    found = {name: getattr(recipe.objective, name, None) for name in ORIGINS}
    places = {name: Path(resolve_model(place)) if isinstance(place, str) else place for name, place in found.items()}
    return {name: place for name, place in places.items() if isinstance(place, Path)}


def read_record(folder: Path) -> dict[str, Any] | None:
    """What a model's folder says; None where it says nothing.

    A part's folder (vae/) is asked for its model's, or for that of the run which the model itself took the part from.
    """
    for place in (folder, folder.parent):
        try:
            found = json.loads((place / TRAINING).read_bytes())
        except (OSError, ValueError):
            continue
        if not isinstance(found, dict):
            return None
        taken = found.get("from", {})
        return taken[folder.name] if place != folder and folder.name in taken else found
    return None


def recipe_hash(recipe: Recipe) -> str:
    """SHA-256 over all that a recipe says but for where it writes, how often it reports and what works ahead of it."""
    content, runs = recipe.model_dump(mode="json", by_alias=True), recipe.run_folder.parent
    for name in ORIGINS:  # by the place among the runs, which may lie elsewhere
        place = content["objective"].get(name)
        if isinstance(place, str) and Path(place).is_relative_to(runs):
            content["objective"][name] = str("runs" / Path(place).relative_to(runs))
    for name in ("output_dir", "every", "trackers", "checkpoint"):
        content.pop(name)
    (content["objective"].get("latents") or {}).pop("workers", None)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def trained_seconds(log: Path) -> float | None:
    """Seconds that the rows of a log took; its clock starts again whenever the run is resumed. None without a log."""
    try:
        lines = log.read_text(encoding="utf-8").split("\n")
    except OSError:
        return None
    total = last = 0.0
    for line in lines:
        try:
            seconds = json.loads(line).get("seconds")
        except (ValueError, AttributeError):
            continue
        if seconds is None:
            continue
        if seconds < last:
            total += last
        last = float(seconds)
    return round(total + last, 1)


def _device(recipe: Recipe) -> str:
    if recipe.device == "cpu" or not torch.accelerator.is_available():
        return "cpu"
    return torch.cuda.get_device_name() if torch.cuda.is_available() else str(torch.accelerator.current_accelerator())
