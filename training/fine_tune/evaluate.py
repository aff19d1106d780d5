"""`vgen evaluate RUN`: the base model against every checkpoint of a fine-tuning run, and which one is best."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vgen.errors import CheckpointError, RequestError
from vgen.io.files import write_json
from vgen.training.checkpoint.store import CheckpointStore
from vgen.training.config.files import RECIPE
from vgen.training.data.footage.source import FootageLatents
from vgen.training.objectives.flow.build import build_fine_tuning
from vgen.training.objectives.flow.config import FineTuneObjectiveConfig, as_fine_tuning
from vgen.training.objectives.flow.flow import FlowObjective
from vgen.training.objectives.flow.material import FootageMaterial
from vgen.training.objectives.lora import without_adapters
from vgen.training.objectives.registry import Setup
from vgen.training.recipe import Recipe, load_recipe
from vgen.training.report.log import save_sheet

SCORES, SHEET = "evaluation.json", "evaluation.png"
_BINS = 8


@dataclass(frozen=True)
class Likeness:
    """How near a generated clip comes to the footage of its prompt.

    Attributes:
        psnr: dB, frame by frame, against the nearest of the prompt's samples.
        histogram: overlap of the colour histograms (8 x 8 x 8 bins of RGB), 0 to 1, against all its samples.
    """

    psnr: float
    histogram: float


def evaluate_run(folder: Path, say: Callable[[str], None], clips: int = 4, device: str = "auto") -> dict[str, Any]:
    """Measure base and checkpoints by the loss at fixed quantiles, and base and best by what they generate.

    The measured samples are those that were trained on, so the loss says how well the footage was learnt, not how well
    it carries over; all noise is the same for all.

    Args:
        folder: of a run of `vgen train lora`.
        say: called with each result.
        clips: prompts to generate from, each with the same seed for base and LoRA.
        device: as in a recipe.
    Returns:
        What evaluation.json holds: "base" and "checkpoints" with their losses, "best" (a checkpoint's name), "clips"
        with the likeness of base and LoRA for each prompt.
    Raises:
        RequestError: not the folder of such a run.
        CheckpointError: no checkpoint yet.
    """
    recipe, config = open_run(folder, device)
    store = CheckpointStore(folder / "checkpoints", recipe.checkpoint.keep)
    if not store.all():
        raise CheckpointError(f"{folder} has no checkpoint yet; let it train on with `vgen train resume {folder}`.")
    objective, material = _built(recipe, config, folder)
    with without_adapters(objective.transformer):
        base = objective.fixed_losses()
    say(f"base: loss {base['loss']:.4f}")
    losses: dict[str, dict[str, float]] = {}
    for path in store.all():
        load_average(objective, store, path)
        losses[path.name] = objective.fixed_losses()
        say(f"{path.name}: loss {losses[path.name]['loss']:.4f} ({losses[path.name]['loss'] / base['loss'] - 1:+.1%})")
    best = min(losses, key=lambda name: losses[name]["loss"])
    load_average(objective, store, store.folder / best)
    made = _compare(objective, material, folder, clips, say)
    result = {"base": base, "checkpoints": losses, "best": best, "clips": made}
    write_json(folder / SCORES, result)
    say(f"best: {best}. See {folder / SCORES} and {folder / SHEET}.")
    return result


def open_run(folder: Path, device: str = "auto") -> tuple[Recipe, FineTuneObjectiveConfig]:
    """The recipe of a LoRA run, and its objective.

    Raises:
        RequestError: `folder` is something else.
    """
    if not (folder / RECIPE).is_file():
        raise RequestError(f"{folder} holds no {RECIPE}: it is not the folder of a run of `vgen train lora`.")
    recipe = load_recipe(folder / RECIPE, [] if device == "auto" else [f"device={device}"], folder)
    config = as_fine_tuning(recipe.objective)
    if config is None:
        raise RequestError(
            f"{folder} trained a {recipe.objective.kind} objective; this is for runs of `vgen train lora`."
        )
    if config.mode != "lora":
        raise RequestError(f"{folder} trained the whole model: use its export/ as --model, and compare as you like.")
    return recipe, config


def _built(recipe: Recipe, config: FineTuneObjectiveConfig, folder: Path) -> tuple[FlowObjective, FootageMaterial]:
    on_accelerator = recipe.device != "cpu" and torch.accelerator.is_available()
    place = (torch.accelerator.current_accelerator() if on_accelerator else None) or torch.device("cpu")
    objective, source = build_fine_tuning(config, Setup(recipe, folder, place))
    return objective.to(place).eval(), FootageMaterial(config, source, objective.vae.strides)


def load_average(objective: FlowObjective, store: CheckpointStore, path: Path) -> None:
    """Give the objective a checkpoint's averaged weights."""
    objective.load_state_dict(store.load(path).ema)


def best_checkpoint(folder: Path, store: CheckpointStore) -> Path:
    """What `vgen evaluate` chose, if it did and that is still whole; else the newest.

    Raises:
        CheckpointError: there is none.
    """
    try:
        chosen = store.folder / json.loads((folder / SCORES).read_text(encoding="utf-8"))["best"]
    except (OSError, ValueError, KeyError, TypeError):
        chosen = None
    found = chosen if chosen is not None and chosen in store.all() else store.newest()
    if found is None:
        raise CheckpointError(f"{folder} has no whole checkpoint; let it train on with `vgen train resume {folder}`.")
    return found


def _compare(
    objective: FlowObjective, material: FootageMaterial, folder: Path, clips: int, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Generate with base and LoRA from the same seeds; the sheet shows footage, base and LoRA of each prompt."""
    rows: list[np.ndarray] = []
    labels: list[str] = []
    made: list[dict[str, Any]] = []
    for prompt in material.source.prompts()[:clips]:
        with without_adapters(objective.transformer):
            (base,) = objective.sample(material.sample(prompt))
        (tuned,) = objective.sample(material.sample(prompt))
        footage = _footage_of(material.source, prompt, len(tuned), tuned.shape[1:3])
        scores = {"base": likeness(base, footage), "lora": likeness(tuned, footage)}
        made.append({"prompt": prompt, "seed": 0, **{name: asdict(score) for name, score in scores.items()}})
        rows += [footage[0], base, tuned]
        labels += [f"footage: {prompt}", "base, the same seed", "LoRA"]
        said = ", ".join(f"{name} {s.psnr:.2f} dB, histogram {s.histogram:.3f}" for name, s in scores.items())
        say(f"{prompt!r}: {said}")
    if rows:
        save_sheet(folder / SHEET, rows, labels)
    return made


def _footage_of(source: FootageLatents, prompt: str, frames: int, size: tuple[int, int]) -> list[np.ndarray]:
    """The samples of a prompt that are of a clip's size and length."""
    places = [
        place
        for place, sample in enumerate(source.samples)
        if prompt in source.captions[sample.clip] and sample.bucket[:3] == (frames, *size)
    ]
    return [source.pixels([place])[0].numpy() for place in places]


def likeness(clip: np.ndarray, footage: list[np.ndarray]) -> Likeness:
    """Compare a clip with footage of its size.

    Args:
        clip: uint8 [F, H, W, 3].
        footage: clips of the same shape, one or more.
    """
    errors = [np.square(clip.astype(np.float64) - real).mean() for real in footage]
    real = np.mean([_histogram(part) for part in footage], axis=0)
    return Likeness(
        round(float(10 * np.log10(255.0**2 / max(min(errors), 1e-10))), 4),
        round(float(np.minimum(_histogram(clip), real).sum()), 4),
    )


def _histogram(clip: np.ndarray) -> np.ndarray:
    """Shares of the 8 x 8 x 8 colours."""
    bins = (clip.reshape(-1, 3) // (256 // _BINS)).astype(np.int64)
    counts = np.bincount(bins @ np.array([_BINS * _BINS, _BINS, 1]), minlength=_BINS**3)
    return counts / counts.sum()
