"""The scores of `vgen evaluate` as a table on the screen."""

from __future__ import annotations

from typing import Any

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
        if "relation" in found:
            rows[f"text to video, {triples}: relation"] = _rate(found["relation"])
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
