"""`vgen evaluate`: how often a judge finds in a clip what was asked for, beside ceilings and floors."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console
from rich.table import Table

from vgen.hub import model_hash, resolve_model
from vgen.pipelines import TextToVideoPipeline
from vgen.training.field_metrics import FieldWeights, field_scores
from vgen.training.scores import (
    Budget,
    Progress,
    image_scores,
    image_to_video_scores,
    text_to_video_scores,
    vae_scores,
)
from vgen.training.story_scores import length_scores, story_scores
from vgen.training.task_scores import completion_scores, interpolation_scores, prediction_scores
from vgen.version import __version__

FULL: Final = Budget(clips=256, prompts=256, seeds=3)
QUICK: Final = Budget(clips=32, prompts=32, seeds=1)
TIERS: Final = (1, 2)


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
    **settings: Any,
) -> dict[str, Any]:
    """Score a model on the test split of SpriteWorld, print the table, and write it as JSON.

    Args:
        model: name or folder.
        quick: fewer clips, for a first look; the numbers are then rough, as their intervals say.
        output: a JSON file, replaced if it exists.
        device: where to run.
        seed: of all noise.
        budget: how much to measure; None takes the full or the quick one.
        tiers: of SpriteWorld.
        field: weights for FVD, CLIP score and LPIPS on this machine; None leaves those out.
        tasks: "basic" (the VAE, text and image to video, pictures) or "all" (also what is known in part, stories, and
            clips of several lengths).
        **settings: handed to the pipelines (guidance_scale ...); what is left out comes from the model.
    Returns:
        {"model", "scores": {...}, ...}, as in the JSON file.
    """
    if field is not None:
        field.check()
    folder = resolve_model(str(model))
    pipeline = TextToVideoPipeline.from_pretrained(folder, torch_dtype=torch.float32).to(device)
    pipeline.set_progress_bar_config(disable=True)
    budget = budget or (QUICK if quick else FULL)
    progress = Progress(_say if sys.stderr.isatty() else _silent)
    started = time.monotonic()
    scores: dict[str, Any] = {}
    for tier in tiers:
        scores[f"tier {tier}"] = {
            "vae": vae_scores(pipeline, tier, budget, progress),
            "text_to_video": {
                triples: text_to_video_scores(pipeline, tier, triples, budget, seed, progress, **settings)
                for triples in ("seen", "withheld")
            },
            "image_to_video": image_to_video_scores(pipeline, tier, budget, seed, progress, **settings),
            "images": image_scores(pipeline, tier, budget, seed, progress, **settings),
        }
        if tasks == "all":
            measures = {
                "prediction": prediction_scores,
                "interpolation": interpolation_scores,
                "completion": completion_scores,
                "stories": story_scores,
                "lengths": length_scores,
            }
            for name, measure in measures.items():
                scores[f"tier {tier}"][name] = measure(pipeline, tier, budget, seed, progress, **settings)
    if field is not None:
        scores[f"tier {tiers[0]}"]["field"] = field_scores(
            pipeline, field, budget, seed, progress, tiers[0], **settings
        )
    report = {
        "model": Path(folder).name,
        "hash": model_hash(folder),
        "vgen": __version__,
        "torch": torch.__version__,
        "budget": budget._asdict(),
        "seed": seed,
        "settings": {**pipeline.config.defaults, **settings},
        "seconds": round(time.monotonic() - started, 1),
        "scores": scores,
    }
    Console().print(table(report))
    if output is not None:
        _write(Path(output), report)
    return report


def table(report: dict[str, Any]) -> Table:
    """The scores as a table: one row a measure, one column a tier."""
    budget = report["budget"]
    title = f"{report['model']} ({report['hash'][:12]}), {budget['prompts']} prompts x {budget['seeds']} seeds a split"
    drawn = Table(title=title)
    drawn.add_column("measure", no_wrap=True)
    for tier in report["scores"]:
        drawn.add_column(tier)
    columns = [_rows(tier) for tier in report["scores"].values()]
    for name in dict.fromkeys(name for column in columns for name in column):
        drawn.add_row(name, *(column.get(name, "") for column in columns))
    return drawn


def _rows(tier: dict[str, Any]) -> dict[str, str]:
    vae, animated, pictures = tier["vae"], tier["image_to_video"], tier["images"]
    rows = {
        "VAE: PSNR, whole / object": f"{vae['psnr']:.1f} / {vae['object_psnr']:.1f} dB",
        "VAE: SSIM": f"{vae['ssim']:.3f}",
        "VAE: colour / shape judged": f"{_rate(vae['judged']['colour'])} / {_rate(vae['judged']['shape'])}",
        "ceiling: joint of originals / through the VAE": (
            f"{_rate(vae['judged_originals']['joint'])} / {_rate(vae['judged']['joint'])}"
        ),
    }
    for triples, found in tier["text_to_video"].items():
        joint = found["joint"]
        rows[f"text to video, {triples}: joint"] = (
            f"{_rate(joint)} ({100 * joint['low']:.1f}-{100 * joint['high']:.1f})"
        )
        rows[f"text to video, {triples}: colour / shape / motion"] = " / ".join(
            _rate(found[part]) for part in ("colour", "shape", "motion")
        )
        rows[f"floors, {triples}: shuffled captions / still video"] = " / ".join(
            _rate(found["floors"][floor]) for floor in ("shuffled_captions", "still_video")
        )
        rows[f"track acceleration, {triples}"] = f"{found['acceleration']:.2f} px"
    rows["image to video: frame 0, made / VAE"] = (
        f"{animated['first_frame_psnr']:.1f} / {animated['vae_first_frame_psnr']:.1f} dB"
    )
    rows["image to video: motion"] = _rate(animated["motion"])
    rows["pictures: colour / shape"] = f"{_rate(pictures['colour'])} / {_rate(pictures['shape'])}"
    rows |= _known_rows(tier) if "prediction" in tier else {}
    return rows | _field_rows(tier.get("field", {}))


def _known_rows(tier: dict[str, Any]) -> dict[str, str]:
    """The model first, then its baselines."""
    rows = {}
    for given, found in tier["prediction"].items():
        name = f"prediction, {given.removeprefix('given_')} frames given: error / copy / steady"
        rows[name] = " / ".join(f"{item['mean']:.1f}" for item in found.values()) + " px"
    between = " / ".join(f"{item['mean']:.1f}" for item in tier["interpolation"].values())
    rows["interpolation: error / copy / blend / steady"] = f"{between} px"
    box = tier["completion"]
    hidden = " / ".join(f"{box[name]:.1f}" for name in ("psnr", "nearest_copy", "linear_blend"))
    rows["completion: hidden part, made / copy / blend"] = f"{hidden} dB"
    rows["completion: known part, made / VAE"] = f"{box['known_psnr']:.1f} / {box['vae_known_psnr']:.1f} dB"
    told = tier["stories"]
    rows["stories: motion of a segment / of a single clip"] = " / ".join(
        _rate(told[name]) for name in ("segment_motion", "single_clip_motion")
    )
    rows["stories: colour and shape constant"] = _rate(told["constant"])
    bends = told["acceleration"]
    rows["stories: acceleration, inside / at a seam"] = f"{bends['inside']:.2f} / {bends['seam']:.2f} px"
    rows["joint at " + ", ".join(tier["lengths"]) + " frames"] = " / ".join(
        f"{100 * found['joint']['mean']:.0f}" for found in tier["lengths"].values()
    ) + " %"  # fmt: skip
    return rows


def _field_rows(found: dict[str, Any]) -> dict[str, str]:
    """Scores of the field, as far as there were weights for them."""
    rows = {}
    if "fvd" in found:
        rows[f"FVD, {found['clips']} clips of {found['frames']} frames"] = f"{found['fvd']:.1f}"
    if "clip_score" in found:
        both = (found["clip_score"], found["clip_score_of_originals"])
        rows["CLIP score, made / originals"] = " / ".join(f"{value:.2f}" for value in both)
    if "lpips_of_reconstructions" in found:
        rows["LPIPS of VAE reconstructions"] = f"{found['lpips_of_reconstructions']:.4f}"
    return rows


def _rate(found: dict[str, float]) -> str:
    return f"{100 * found['mean']:.1f} %"


def _write(target: Path, report: dict[str, Any]) -> None:
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        part.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def _say(what: str, count: int) -> None:
    sys.stderr.write(f"\r\033[K{what}: +{count}")
    sys.stderr.flush()


def _silent(what: str, count: int) -> None:
    return None
