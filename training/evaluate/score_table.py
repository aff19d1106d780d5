"""The scores of `vgen evaluate` as a table on the screen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from rich.table import Table


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
    rows: dict[str, str] = {}
    for name, drawn in _DRAWN.items():
        if name in tier:
            rows |= drawn(tier[name])
    return rows | _field_rows(tier.get("field", {}))


def _vae_rows(vae: dict[str, Any]) -> dict[str, str]:
    return {
        "VAE: PSNR, whole / object": f"{vae['psnr']:.1f} / {vae['object_psnr']:.1f} dB",
        "VAE: SSIM": f"{vae['ssim']:.3f}",
        "VAE: colour / shape judged": f"{_rate(vae['judged']['colour'])} / {_rate(vae['judged']['shape'])}",
        "ceiling: joint of originals / through the VAE": (
            f"{_rate(vae['judged_originals']['joint'])} / {_rate(vae['judged']['joint'])}"
        ),
    }


def _text_rows(text: dict[str, Any]) -> dict[str, str]:
    rows = {}
    for triples, found in text.items():
        joint = found["joint"]
        rows[f"text to video, {triples}: joint"] = (
            f"{_rate(joint)} ({100 * joint['low']:.1f}-{100 * joint['high']:.1f})"
        )
        rows[f"text to video, {triples}: colour / shape / motion"] = " / ".join(
            _rate(found[part]) for part in ("colour", "shape", "motion")
        )
        if "relation" in found:
            rows[f"text to video, {triples}: relation"] = _rate(found["relation"])
        rows[f"floors, {triples}: shuffled captions / still video"] = " / ".join(
            _rate(found["floors"][floor]) for floor in ("shuffled_captions", "still_video")
        )
        rows[f"track acceleration, {triples}"] = f"{found['acceleration']:.2f} px"
    return rows


def _animated_rows(animated: dict[str, Any]) -> dict[str, str]:
    frame = f"{animated['first_frame_psnr']:.1f} / {animated['vae_first_frame_psnr']:.1f} dB"
    return {"image to video: frame 0, made / VAE": frame, "image to video: motion": _rate(animated["motion"])}


def _picture_rows(pictures: dict[str, Any]) -> dict[str, str]:
    return {"pictures: colour / shape": f"{_rate(pictures['colour'])} / {_rate(pictures['shape'])}"}


def _prediction_rows(prediction: dict[str, Any]) -> dict[str, str]:
    """The model first, then its baselines; as everywhere below."""
    rows = {}
    for given, found in prediction.items():
        name = f"prediction, {given.removeprefix('given_')} frames given: error / copy / steady"
        rows[name] = " / ".join(f"{item['mean']:.1f}" for item in found.values()) + " px"
    return rows


def _interpolation_rows(found: dict[str, Any]) -> dict[str, str]:
    between = " / ".join(f"{item['mean']:.1f}" for item in found.values())
    return {"interpolation: error / copy / blend / steady": f"{between} px"}


def _completion_rows(box: dict[str, Any]) -> dict[str, str]:
    hidden = " / ".join(f"{box[name]:.1f}" for name in ("psnr", "nearest_copy", "linear_blend"))
    return {
        "completion: hidden part, made / copy / blend": f"{hidden} dB",
        "completion: known part, made / VAE": f"{box['known_psnr']:.1f} / {box['vae_known_psnr']:.1f} dB",
    }


def _story_rows(told: dict[str, Any]) -> dict[str, str]:
    bends = told["acceleration"]
    return {
        "stories: motion of a segment / of a single clip": " / ".join(
            _rate(told[name]) for name in ("segment_motion", "single_clip_motion")
        ),
        "stories: colour and shape constant": _rate(told["constant"]),
        "stories: acceleration, inside / at a seam": f"{bends['inside']:.2f} / {bends['seam']:.2f} px",
    }


def _length_rows(lengths: dict[str, Any]) -> dict[str, str]:
    joint = " / ".join(f"{100 * found['joint']['mean']:.0f}" for found in lengths.values())
    return {"joint at " + ", ".join(lengths) + " frames": f"{joint} %"}


_DRAWN: Final[dict[str, Callable[[dict[str, Any]], dict[str, str]]]] = {
    "vae": _vae_rows,
    "text_to_video": _text_rows,
    "image_to_video": _animated_rows,
    "images": _picture_rows,
    "prediction": _prediction_rows,
    "interpolation": _interpolation_rows,
    "completion": _completion_rows,
    "stories": _story_rows,
    "lengths": _length_rows,
}
"""What is drawn of a tier, in this order."""


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
