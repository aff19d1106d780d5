"""The scores of `vgen evaluate` as a Markdown page: intervals, aims, ceilings, floors, and what made the weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from vgen.errors import duration

Rate = dict[str, float]
JOINT_AIMS: Final = {"tier 1": {"seen": 0.90, "withheld": 0.75}, "tier 2": {"seen": 0.80, "withheld": 0.60}}
VAE_AIMS: Final = {"psnr": 34.0, "object_psnr": 28.0, "ssim": 0.97, "judged": 0.99}
MOTION_AIM: Final = 0.85  # of animated pictures
PICTURES_AIM: Final = 0.90
PREDICTION_AIM: Final = 2.0  # pixels of 64
INTERPOLATION_AIM: Final = 1.5  # pixels of 64
BELOW_VAE: Final = 0.5  # dB that a known part may lie below its reconstruction


class Line(NamedTuple):
    """A row of the table of a tier, as text."""

    measure: str
    score: str
    interval: str = ""
    aim: str = ""
    ceiling: str = ""
    floors: str = ""
    clips: str = ""


def render(report: dict[str, Any]) -> str:
    """The page of a report that `evaluate_model` made; what an older one does not tell is said to be unknown.

    Args:
        report: as in the JSON file.
    """
    budget, settings = report["budget"], report["settings"]
    about = {
        "weights": f"`{report['hash']}` (SHA-256 of the folder's weights, configurations and tokenizer)",
        "trained by": _trained(report.get("training")),
        "measured": f"{report.get('date') or 'on an unknown day'}, in {duration(report['seconds'])}"
        f" on {report.get('device') or 'an unknown device'}",
        "versions": _versions(report),
        "how much": f"{budget['prompts']} prompts a split, {budget['seeds']} {_seeds(budget['seeds'])} each for text to"
        f" video, image to video and pictures, one for the rest; seed {report['seed']}",
        "settings": ", ".join(f"{name} {value}" for name, value in sorted(settings.items())),
        "command": f"`{report['command']}`" if report.get("command") else "unknown",
    }
    parts = [f"# {report['model']}: what it does, measured", "", "Written by `vgen evaluate`; not by hand.", ""]
    parts += ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in about.items()), ""]
    for name, tier in report["scores"].items():
        parts += [f"## {name.capitalize()}", "", *_table(_lines(name, tier)), ""]
        parts += [*_by_motion(tier["text_to_video"]), ""] if "text_to_video" in tier else []
    if "guidance" in report:
        parts += [*_guidance(report["guidance"]), ""]
    if report.get("limits"):
        parts += ["## Known limits", "", report["limits"].rstrip(), ""]
    shares = _WILSON if report.get("intervals_of_shares") == "wilson" else "bootstrap over clips, also of shares"
    return "\n".join([*parts, _READING.format(shares=shares), ""])


_WILSON: Final = (
    "Wilson's for shares, with as many independent clips as the spread between prompts tells where a prompt has"
    " several seeds; bootstrap over clips for means and PSNR"
)
_READING: Final = """## How to read it

- A judge without learned weights (`training/judge/judge.py`) reads presence, colour, shape and motion from the pixels
  of a clip, and what two objects are to each other; *joint* means all of them are what the prompt asked for, of all
  objects.
  *Withheld*: combinations of colour, shape and motion that training never showed. No pixels are pasted back anywhere.
- Intervals cover 95 %: {shares}.
- *Ceilings*: the same judge on the original clips after the VAE. *Floors*: captions swapped among clips; a clip's
  first frame held; the same model with freshly drawn weights; the nearest known frame or pixel; a linear blend of what
  is known; a centre that goes on at a constant velocity.
- Errors of centres are in pixels of a short side of 64. A clip in which nothing is found counts as 32 pixels off.
- *Aims* are compared with the score, not with an end of its interval."""


def _trained(record: dict[str, Any] | None) -> str:
    """The run that made the weights and those before it, each once, with what it began with."""
    if record is None:
        return "unknown: the folder holds no training.json"
    said: dict[str, str] = {}
    waiting = [record]
    for run in waiting:  # grows meanwhile
        begun = run.get("from", {})
        waiting += [origin for origin in begun.values() if origin]
        parts = [f"{'start' if name == 'init' else name} of {_run(origin)}" for name, origin in begun.items()]
        threads = run["threads"] if run["device"] == "cpu" else None
        with_threads = f" with {threads} {'thread' if threads == 1 else 'threads'}" if threads else ""
        said.setdefault(
            _run(run),
            f"{_run(run)}, {run['steps']:,} of {run['total_steps']:,} steps, {_time(run['seconds'])} on "
            f"{run['device']}{with_threads}" + (f", from the {' and the '.join(parts)}" if parts else ""),
        )
    return "; ".join(said.values())


def _time(seconds: float | None) -> str:
    return "an unknown time" if seconds is None else duration(seconds)


def _run(record: dict[str, Any] | None) -> str:
    """What names a run: its recipe."""
    if record is None:
        return "an unknown run"
    return f"`{record['recipe']}` (recipe SHA-256 {record['recipe_sha256'][:16]})"


def _versions(report: dict[str, Any]) -> str:
    found = {"vgen": report["vgen"], "torch": report["torch"], **report.get("versions", {})}
    return ", ".join(f"{name} {value}" for name, value in found.items())


def _seeds(count: int) -> str:
    return "seed" if count == 1 else "seeds"


def _table(lines: Iterator[Line]) -> list[str]:
    head = ["measure", "score", "95 % interval", "aim", "ceiling", "floors", "clips"]
    rows = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return rows + ["| " + " | ".join(line) + " |" for line in lines]


def _lines(tier_name: str, tier: dict[str, Any]) -> Iterator[Line]:
    if "vae" in tier:
        yield from _vae_lines(tier["vae"])
    for triples, found in tier.get("text_to_video", {}).items():
        yield from _text_lines(tier, triples, found, JOINT_AIMS.get(tier_name, {}).get(triples))
    if "image_to_video" in tier:
        yield from _animated_lines(tier["image_to_video"])
    for part in ("colour", "shape") if "images" in tier else ():
        yield _share(f"pictures: {part}", tier["images"][part], PICTURES_AIM)
    for given, found in tier.get("prediction", {}).items():
        yield _error(
            f"prediction, {given.removeprefix('given_')} frames given: centre of the last", found, PREDICTION_AIM
        )
    if "interpolation" in tier:
        yield _interpolation_line(tier["interpolation"])
    if "completion" in tier:
        yield from _completion_lines(tier["completion"])
    if "stories" in tier:
        yield from _story_lines(tier["stories"])
    for length, found in tier.get("lengths", {}).items():
        yield _share(f"{length} {'frame' if length == '1' else 'frames'}: joint", found["joint"])


def _vae_lines(vae: dict[str, Any]) -> Iterator[Line]:
    yield _decibels("VAE: PSNR", vae, "psnr", VAE_AIMS["psnr"])
    yield _decibels("VAE: PSNR on the objects' pixels", vae, "object_psnr", VAE_AIMS["object_psnr"])
    yield Line("VAE: SSIM", f"{vae['ssim']:.3f}", "", _aim(vae["ssim"] >= VAE_AIMS["ssim"], f"{VAE_AIMS['ssim']}"))
    for part in ("colour", "shape"):
        ceiling = f"originals {_percent(vae['judged_originals'][part])}"
        yield _share(f"VAE: {part} judged afterwards", vae["judged"][part], VAE_AIMS["judged"], ceiling)


def _text_lines(tier: dict[str, Any], triples: str, found: dict[str, Any], aim: float | None) -> Iterator[Line]:
    ceilings = {part: f"VAE {_percent(rate)}" for part, rate in tier.get("vae", {}).get("judged", {}).items()}
    floors = {name.replace("_", " "): rate for name, rate in found["floors"].items()}
    if "untrained" in tier:
        floors["untrained"] = tier["untrained"]["joint"]
    said = ", ".join(f"{name} {_percent(rate)}" for name, rate in floors.items())
    name = f"text to video, {triples}"
    yield _share(f"{name}: joint", found["joint"], aim, ceilings.get("joint", ""), said)
    for part in (part for part in ("presence", "colour", "shape", "motion", "relation") if part in found):
        floor = f"untrained {_percent(tier['untrained'][part])}" if "untrained" in tier else ""
        yield _share(f"{name}: {part}", found[part], None, ceilings.get(part, ""), floor)


def _animated_lines(animated: dict[str, Any]) -> Iterator[Line]:
    vae = animated["vae_first_frame_psnr"]
    yield _decibels(
        "image to video: PSNR of frame 0", animated, "first_frame_psnr", vae - BELOW_VAE, f"VAE {vae:.1f} dB"
    )
    yield _share("image to video: motion", animated["motion"], MOTION_AIM)


def _interpolation_line(between: dict[str, Any]) -> Line:
    better = between["error"]["mean"] < between["linear_blend"]["mean"]
    name = "interpolation: centre of the middle frame"
    return _error(name, between, INTERPOLATION_AIM, better, "and below the blend")


def _completion_lines(box: dict[str, Any]) -> Iterator[Line]:
    floors = f"nearest copy {box['nearest_copy']:.1f} dB, linear blend {box['linear_blend']:.1f} dB"
    beaten = box["psnr"] > max(box["nearest_copy"], box["linear_blend"])
    hidden = _decibels("completion: PSNR of the hidden part", box, "psnr", None, f"VAE {box['vae']:.1f} dB", floors)
    yield hidden._replace(aim=_aim(beaten, "above the floors"))
    vae = box["vae_known_psnr"]
    yield _decibels("completion: PSNR of the known part", box, "known_psnr", vae - BELOW_VAE, f"VAE {vae:.1f} dB")


def _story_lines(told: dict[str, Any]) -> Iterator[Line]:
    alone = f"single clips {_percent(told['single_clip_motion'])}"
    yield _share("stories of four prompts: motion of a segment", told["segment_motion"], None, alone)
    yield _share("stories: colour and shape constant", told["constant"])
    bends = told["acceleration"]
    inside = f"inside windows {bends['inside']:.2f} px"
    yield Line("stories: acceleration where windows meet", f"{bends['seam']:.2f} px a frame²", "", "", inside)


def _share(name: str, rate: Rate, aim: float | None = None, ceiling: str = "", floors: str = "") -> Line:
    interval = f"{100 * rate['low']:.1f} – {100 * rate['high']:.1f} %"
    said = "" if aim is None else _aim(rate["mean"] >= aim, f"{100 * aim:.0f} %")
    return Line(name, _percent(rate), interval, said, ceiling, floors, f"{rate['count']:.0f}")


def _decibels(
    name: str, found: dict[str, Any], key: str, aim: float | None, ceiling: str = "", floors: str = ""
) -> Line:
    low, high = found.get("intervals", {}).get(key, (None, None))
    interval = "unknown" if low is None else f"{low:.1f} – {high:.1f} dB"
    said = "" if aim is None else _aim(found[key] >= aim, f"{aim:.1f} dB")
    hides = aim is not None and found[key] < aim and f"{found[key]:.1f}" == f"{aim:.1f}"
    digits = 2 if hides else 1  # what just misses must not look as if it met
    return Line(name, f"{found[key]:.{digits}f} dB", interval, said, ceiling, floors)


def _error(name: str, found: dict[str, Rate], aim: float, also: bool = True, said: str = "") -> Line:
    error = found["error"]
    floors = {key.replace("_", " "): rate for key, rate in found.items() if key != "error"}
    return Line(
        name,
        f"{error['mean']:.2f} px",
        f"{error['low']:.2f} – {error['high']:.2f} px",
        _aim(error["mean"] <= aim and also, f"at most {aim} px {said}".strip()),
        "",
        ", ".join(f"{key} {rate['mean']:.2f} px" for key, rate in floors.items()),
        f"{error['count']:.0f}",
    )


def _by_motion(text: dict[str, Any]) -> list[str]:
    """Joint share of every motion, or relation of two objects, seen and withheld."""
    motions = sorted({motion for found in text.values() for motion in found["by_motion"]})
    rows = ["Joint share by motion:", "", "| motion | " + " | ".join(text) + " |", "|---|---|---|"]
    for motion in motions:
        shares = (found["by_motion"].get(motion) for found in text.values())
        rows.append(f"| {motion} | " + " | ".join("" if s is None else f"{100 * s:.0f} %" for s in shares) + " |")
    return rows


def _guidance(found: dict[str, Any]) -> list[str]:
    tiers = next(iter(found["joint"].values()))
    rows = [
        "## Choice of the guidance scale", "",
        f"On the {found['split']} split, {found['prompts']} prompts a tier, one seed, seen triples; "
        f"**{found['chosen']:g}** was chosen, and everything above is measured with it.", "",
        "| scale | " + " | ".join(f"joint, {tier}" for tier in tiers) + " |", "|---|" + "---|" * len(tiers),
    ]  # fmt: skip
    for scale, rates in found["joint"].items():
        cells = (f"{_percent(r)} ({100 * r['low']:.1f} – {100 * r['high']:.1f})" for r in rates.values())
        rows.append(f"| {scale} | " + " | ".join(cells) + " |")
    return rows


def _percent(rate: Rate) -> str:
    return f"{100 * rate['mean']:.1f} %"


def _aim(met: bool, said: str) -> str:
    return f"{said}: {'met' if met else '**missed**'}"
