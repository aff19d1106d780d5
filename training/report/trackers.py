"""Where a run's numbers go besides log.jsonl: tensorboard, wandb, trackio, through accelerate."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

from accelerate import Accelerator

from vgen.errors import RequestError
from vgen.training.recipe import Recipe

Track = Callable[[dict[str, float], int], None]


def check_trackers(names: list[str]) -> None:
    """Refuse trackers that are not installed.

    Raises:
        RequestError: names the first.
    """
    for name in names:
        modules = ("tensorboard", "tensorboardX") if name == "tensorboard" else (name,)
        if not any(importlib.util.find_spec(module) for module in modules):
            raise RequestError(f"trackers={name} is not installed; pip install 'vgen[{name}]', or leave it out.")


def start_trackers(accelerator: Accelerator, recipe: Recipe, start_step: int) -> Track:
    """Begin the recipe's trackers; returns what each row of the log is handed to.

    Args:
        accelerator: built with `log_with`.
        recipe: the run's name is the project's.
        start_step: rows after it are written again, and replace those of an earlier start where the tracker can.
    """
    if not recipe.trackers:
        return lambda values, step: None
    accelerator.init_trackers(recipe.name, init_kwargs={"tensorboard": {"purge_step": start_step + 1}})

    def track(values: dict[str, float], step: int) -> None:
        accelerator.log(values, step=step)

    return track


def finish_trackers(accelerator: Accelerator) -> None:
    """Let the trackers write what they still hold; accelerate's own `end_training` would part the processes as well."""
    for tracker in accelerator.trackers:
        tracker.finish()


def tracker_folder(folder: Path) -> Path:
    """Where trackers that write files put them."""
    return folder / "trackers"
