"""`vgen evaluate`: how often a judge finds in a clip what was asked for, next to ceilings and floors."""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console

from vgen.errors import RequestError
from vgen.hub.find import model_hash, resolve_model
from vgen.io.files import write_json, write_text
from vgen.pipelines import TextToVideoPipeline
from vgen.request.trained import unwarned
from vgen.training.evaluate.field_metrics import FieldWeights, field_scores
from vgen.training.evaluate.measure import Measure, Scores
from vgen.training.evaluate.measures import read_measures
from vgen.training.evaluate.model import Budget, ScoredModel
from vgen.training.evaluate.report import render, table
from vgen.training.evaluate.resumable import Measurements, measuring_pool
from vgen.training.evaluate.scores import guidance_choice
from vgen.training.provenance import read_record

FULL: Final = Budget(clips=256, prompts=256, seeds=3)
QUICK: Final = Budget(clips=32, prompts=32, seeds=1)
TIERS: Final = (1, 2)
_GUIDANCE_PROMPTS: Final = 128
_PLAIN_LINE_SECONDS: Final = 30.0


def evaluate_model(
    model: str | Path,
    quick: bool = False,
    output: str | Path | None = None,
    device: str = "cpu",
    seed: int = 0,
    budget: Budget | None = None,
    tiers: tuple[int, ...] = TIERS,
    tasks: str = "basic",
    field: FieldWeights | None = None,
    report: str | Path | None = None,
    guidance: Sequence[float] = (),
    command: str | None = None,
    workers: int = 0,
    **settings: Any,
) -> dict[str, Any]:
    """Score a model on the test split of SpriteWorld, print the table, and write it as JSON and as a report.

    With `output` or `report`, what is measured is kept next to it, in NAME.parts.jsonl, until it is written: a killed
    evaluation continues from there when it is asked for again, also with other batches or on another device.

    Args:
        model: name or folder.
        quick: fewer clips, for a first look; the numbers are then rough, as their intervals say.
        output: a JSON file, replaced if it exists.
        device: where to run.
        seed: of all noise.
        budget: how much to measure; None takes the full or the quick one.
        tiers: of SpriteWorld.
        field: weights for FVD, CLIP score and LPIPS on this machine; None leaves those out.
        tasks: "basic" (the VAE, text and image to video, pictures), "all" (also what is known in part, stories, and
            clips of several lengths), or some of their names, see `vgen.training.evaluate.measures`.
        report: a Markdown file, replaced if it exists.
        guidance: scales to choose from, on the validation split; the best one is used for everything measured.
        command: that repeats this; stands in the report.
        workers: processes that judge clips while the next ones are made; 0: this one does, in turn.
        **settings: handed to the pipelines (guidance_scale ...); the model's own are the defaults.
    Returns:
        {"model", "scores": {...}, ...}, as in the JSON file.
    Raises:
        RequestError: a task is not known; the results kept next to `output` belong to another evaluation.
    """
    measures = read_measures(tasks)
    if field is not None:
        field.check()
    folder = resolve_model(str(model))
    pipeline = TextToVideoPipeline.from_pretrained(folder, torch_dtype=torch.float32).to(device)
    pipeline.set_progress_bar_config(disable=True)
    budget = budget or (QUICK if quick else FULL)
    about = {
        "model": model_hash(folder),
        "budget": list(budget._replace(batch=0)),  # the size of the batches changes no clip
        "seed": seed,
        "settings": settings,
        "guidance": list(guidance),
        "vgen": version("vgen"),
    }
    planned, place = planned_clips(budget, tiers, measures, guidance), f"{device} with torch {torch.__version__}"
    with measuring_pool(workers) as pool, unwarned():
        kept = Measurements(_parts(output, report), about, planned, _speaker(), pool=pool, place=place)
        began = kept.clock() - kept.seconds
        found = _about(folder, about, command, budget, seed)
        models = [ScoredModel(pipeline, tier, budget, seed, kept, settings) for tier in tiers]
        if guidance:
            found["guidance"] = choose_guidance(models, guidance)
            settings = {**settings, "guidance_scale": found["guidance"]["chosen"]}
            models = [replace(model, settings=settings) for model in models]
        found["settings"] = {**pipeline.config.defaults, **settings}
        scores = {f"tier {model.tier}": _tier_scores(model, measures) for model in models}
        if field is not None:
            scores[f"tier {tiers[0]}"]["field"] = field_scores(models[0], field)
    found["device"] = " and ".join(kept.places) if {*kept.places} - {place} else str(device)
    found |= {"seconds": round(kept.clock() - began, 1), "scores": scores}
    Console(markup=False).print(table(found))
    if output is not None:
        write_json(Path(output), found)
    if report is not None:
        write_text(Path(report), render(found))
    kept.close()
    return found


def _about(folder: str | Path, about: dict[str, Any], command: str | None, budget: Budget, seed: int) -> dict[str, Any]:
    """What the page says of an evaluation before anything is measured; the folder may hold its limits, limits.md."""
    limits = Path(folder) / "limits.md"
    return {
        "model": Path(folder).name,
        "hash": about["model"],
        "vgen": about["vgen"],
        "torch": torch.__version__,
        "versions": {name: version(name) for name in ("diffusers", "transformers", "numpy")}
        | {"python": platform.python_version()},
        "date": datetime.now(UTC).date().isoformat(),
        "command": command,
        "intervals_of_shares": "wilson",
        "budget": budget._asdict(),
        "seed": seed,
        "training": read_record(Path(folder)),
        "limits": limits.read_text(encoding="utf-8") if limits.is_file() else None,
    }


def _tier_scores(model: ScoredModel, measures: Sequence[Measure]) -> Scores:
    scores: Scores = {}
    for measure in measures:
        task = scores.setdefault(measure.task, {})
        task |= {measure.part: measure.run(model)} if measure.part else measure.run(model)
    return scores


def choose_guidance(models: Sequence[ScoredModel], scales: Sequence[float]) -> dict[str, Any]:
    """The guidance scale at which most clips of the validation split show all that was asked; the lower one of equals.

    Args:
        models: the model on every tier.
        scales: to choose from.
    Returns:
        {"split", "prompts" (per tier), "joint": {scale: {tier: rate}}, "chosen"}.
    """
    fewer = [replace(model, budget=_guidance_budget(model.budget)) for model in models]
    joint: dict[str, dict[str, Any]] = {}
    for scale in scales:
        measure = guidance_choice(scale)
        guided = [replace(model, settings={**model.settings, "guidance_scale": float(scale)}) for model in fewer]
        joint[f"{scale:g}"] = {f"tier {model.tier}": measure.run(model)["joint"] for model in guided}
    means = {scale: sum(rate["mean"] for rate in joint[f"{scale:g}"].values()) for scale in scales}
    chosen = min(scales, key=lambda scale: (-round(means[scale], 9), scale))
    return {"split": "validation", "prompts": fewer[0].budget.prompts, "joint": joint, "chosen": float(chosen)}


def _guidance_budget(budget: Budget) -> Budget:
    return budget._replace(prompts=min(budget.prompts, _GUIDANCE_PROMPTS), seeds=1)


def planned_clips(
    budget: Budget, tiers: Sequence[int], measures: Sequence[Measure], guidance: Sequence[float] = ()
) -> dict[str, tuple[int, float]]:
    """Clips of every measure to come and what each costs, a usual clip being 1; only the time left depends on it."""
    choices = [(guidance_choice(scale), _guidance_budget(budget)) for scale in guidance]
    return {
        measure.title(tier): (measure.count(asked), measure.cost)
        for measure, asked in (*choices, *((measure, budget) for measure in measures))
        for tier in tiers
    }


def _parts(output: str | Path | None, report: str | Path | None) -> Path | None:
    """Where results are kept until all are there."""
    chosen = output if output is not None else report
    return None if chosen is None else Path(chosen).with_suffix(".parts.jsonl")


def _speaker() -> Callable[[str], None]:
    """Says on stderr what is done: one line that changes on a terminal, else a line every half minute."""
    if sys.stderr.isatty():
        return lambda text: print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
    last = time.monotonic()

    def say(text: str) -> None:
        nonlocal last
        if time.monotonic() - last >= _PLAIN_LINE_SECONDS:
            last = time.monotonic()
            print(text, file=sys.stderr, flush=True)

    return say


def report_from(scores: str | Path) -> str:
    """The page of scores that were measured before.

    Args:
        scores: the JSON file that `evaluate_model` wrote.
    Raises:
        RequestError: it is something else.
    """
    try:
        found = json.loads(Path(scores).read_text(encoding="utf-8-sig"))
        return render(found)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RequestError(
            f"{scores} holds no scores of `vgen evaluate --output` ({type(error).__name__}: {error}); give such a file."
        ) from None
