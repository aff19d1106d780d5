"""`vgen evaluate`: how often a judge finds in a clip what was asked for, beside ceilings and floors."""

from __future__ import annotations

import copy
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console

from vgen.errors import RequestError
from vgen.hub.find import model_hash, resolve_model
from vgen.pipelines import TextToVideoPipeline
from vgen.request.trained import unwarned
from vgen.training.data.footage.records import write_text
from vgen.training.evaluate.field_metrics import FieldWeights, field_scores
from vgen.training.evaluate.measures import read_measures
from vgen.training.evaluate.report import render
from vgen.training.evaluate.resumable import Ledger, measuring_pool
from vgen.training.evaluate.score_table import table
from vgen.training.evaluate.scores import (
    Budget,
    image_scores,
    image_to_video_scores,
    text_to_video_scores,
    vae_scores,
)
from vgen.training.evaluate.story_scores import LENGTHS, STORY_PROMPTS, length_scores, story_scores
from vgen.training.evaluate.task_scores import GIVEN, completion_scores, interpolation_scores, prediction_scores
from vgen.training.provenance import read_record

FULL: Final = Budget(clips=256, prompts=256, seeds=3)
QUICK: Final = Budget(clips=32, prompts=32, seeds=1)
TIERS: Final = (1, 2)
_UNTRAINED_PROMPTS: Final = 64
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

    With `output` or `report`, what is measured is kept beside it, in NAME.parts.jsonl, until it is written: a killed
    evaluation goes on from there when it is asked for again, also with other batches or on another device.

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
        command: that repeats this; told in the report.
        workers: processes that judge clips while the next ones are made; 0: this one does, in turn.
        **settings: handed to the pipelines (guidance_scale ...); what is left out comes from the model.
    Returns:
        {"model", "scores": {...}, ...}, as in the JSON file.
    Raises:
        RequestError: a task is not known; the results kept beside `output` belong to another evaluation.
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
    planned, place = expected(budget, tiers, measures, guidance), f"{device} with torch {torch.__version__}"
    with measuring_pool(workers) as pool, unwarned():
        ledger = Ledger(_parts(output, report), about, planned, _speaker(), pool=pool, place=place)
        began = ledger.clock() - ledger.seconds
        found = _about(folder, about, command, budget, seed)
        if guidance:
            found["guidance"] = choose_guidance(pipeline, guidance, budget, tiers, seed, ledger, **settings)
            settings["guidance_scale"] = found["guidance"]["chosen"]
        found["settings"] = {**pipeline.config.defaults, **settings}
        scores = {
            f"tier {tier}": _tier_scores(pipeline, tier, budget, seed, ledger, measures, **settings) for tier in tiers
        }
        if field is not None:
            chosen = field_scores(pipeline, field, budget, seed, ledger, tiers[0], **settings)
            scores[f"tier {tiers[0]}"]["field"] = chosen
    found["device"] = " and ".join(ledger.places) if {*ledger.places} - {place} else str(device)
    found |= {"seconds": round(ledger.clock() - began, 1), "scores": scores}
    Console(markup=False).print(table(found))
    if output is not None:
        write_text(Path(output), json.dumps(found, indent=1) + "\n")
    if report is not None:
        write_text(Path(report), render(found))
    ledger.close()
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


def _tier_scores(
    pipeline: TextToVideoPipeline,
    tier: int,
    budget: Budget,
    seed: int,
    ledger: Ledger,
    measures: Sequence[str],
    **settings: Any,
) -> dict[str, Any]:
    measured: dict[str, Callable[[], dict[str, Any]]] = {"vae": lambda: vae_scores(pipeline, tier, budget, ledger)}
    for name, measure in _MEASURES.items():
        measured[name] = partial(measure, pipeline, tier, budget, seed, ledger, **settings)
    return {name: measured[name]() for name in measures}


def _text_scores(
    pipeline: TextToVideoPipeline, tier: int, budget: Budget, seed: int, ledger: Ledger, **settings: Any
) -> dict[str, Any]:
    return {
        triples: text_to_video_scores(pipeline, tier, triples, budget, seed, ledger, **settings)
        for triples in ("seen", "withheld")
    }


def _untrained_scores(
    pipeline: TextToVideoPipeline, tier: int, budget: Budget, seed: int, ledger: Ledger, **settings: Any
) -> dict[str, Any]:
    """The floor of text to video: the same model, its transformer's weights freshly drawn."""
    fresh = copy.deepcopy(pipeline.transformer)
    fresh.init_weights(torch.Generator(fresh.device).manual_seed(0))
    untrained = TextToVideoPipeline(**{**pipeline.components, "transformer": fresh})
    untrained.set_progress_bar_config(disable=True)
    fewer = budget._replace(prompts=min(budget.prompts, _UNTRAINED_PROMPTS), seeds=1)
    return text_to_video_scores(untrained, tier, "seen", fewer, seed, ledger, name="untrained", **settings)


_MEASURES: Final[dict[str, Callable[..., dict[str, Any]]]] = {
    "text_to_video": _text_scores,
    "image_to_video": image_to_video_scores,
    "images": image_scores,
    "untrained": _untrained_scores,
    "prediction": prediction_scores,
    "interpolation": interpolation_scores,
    "completion": completion_scores,
    "stories": story_scores,
    "lengths": length_scores,
}
"""By their names, see `vgen.training.evaluate.measures`."""


def choose_guidance(
    pipeline: TextToVideoPipeline,
    scales: Sequence[float],
    budget: Budget,
    tiers: Sequence[int],
    seed: int,
    ledger: Ledger,
    **settings: Any,
) -> dict[str, Any]:
    """The guidance scale of which most clips of the validation split show all that was asked; the lower one of equals.

    Returns:
        {"split", "prompts" (a tier), "joint": {scale: {tier: rate}}, "chosen"}.
    """
    fewer = budget._replace(prompts=min(budget.prompts, _GUIDANCE_PROMPTS), seeds=1)
    joint: dict[str, dict[str, Any]] = {}
    for scale in scales:
        given = {**settings, "guidance_scale": float(scale)}
        name = f"guidance {scale:g} on validation"
        joint[f"{scale:g}"] = {
            f"tier {tier}": text_to_video_scores(
                pipeline, tier, "seen", fewer, seed, ledger, split="validation", name=name, **given
            )["joint"]
            for tier in tiers
        }
    means = {scale: sum(rate["mean"] for rate in joint[f"{scale:g}"].values()) for scale in scales}
    chosen = min(scales, key=lambda scale: (-round(means[scale], 9), scale))
    return {"split": "validation", "prompts": fewer.prompts, "joint": joint, "chosen": float(chosen)}


def expected(
    budget: Budget, tiers: Sequence[int], measures: Sequence[str], guidance: Sequence[float] = ()
) -> dict[str, tuple[int, float]]:
    """Clips of every measure to come and what each costs, a usual clip being 1; only the time left depends on it."""
    asked, repeated, stories = budget.prompts, budget.prompts * budget.seeds, max(1, budget.prompts // STORY_PROMPTS)
    found: dict[str, tuple[int, float]] = {}
    for tier in tiers:
        for scale in guidance:
            found[f"guidance {scale:g} on validation, tier {tier}, seen"] = (min(asked, _GUIDANCE_PROMPTS), 1.0)
    for tier in tiers:
        costs: dict[str, dict[str, tuple[int, float]]] = {
            "vae": {f"VAE, tier {tier}": (budget.clips, 0.1)},
            "text_to_video": {
                f"text to video, tier {tier}, {triples}": (repeated, 1.0) for triples in ("seen", "withheld")
            },
            "image_to_video": {f"image to video, tier {tier}": (repeated, 1.0)},
            "images": {f"pictures, tier {tier}": (repeated, 0.3)},
            "untrained": {f"untrained, tier {tier}, seen": (min(asked, _UNTRAINED_PROMPTS), 1.0)},
            "prediction": {f"prediction of {given}, tier {tier}": (asked, 1.0) for given in GIVEN},
            "interpolation": {f"interpolation, tier {tier}": (asked, 1.1)},
            "completion": {f"completion, tier {tier}": (asked, 1.1)},
            "stories": {
                f"stories, tier {tier}": (stories, 9.0),
                f"clips of stories, tier {tier}": (stories * STORY_PROMPTS, 1.0),
            },
            "lengths": {f"{length} frames, tier {tier}": (asked, 0.25 + length / 20) for length in LENGTHS},
        }
        for name in measures:
            found |= costs[name]
    return found


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
