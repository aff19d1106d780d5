"""The scores of `vgen evaluate` as a Markdown page and as a table on the screen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

from rich.table import Table

from vgen.errors import duration
from vgen.training.evaluate.field_metrics import field_lines
from vgen.training.evaluate.lines import Line, percent
from vgen.training.evaluate.measure import TierScores
from vgen.training.evaluate.measures import MEASURES


def render(report: dict[str, Any]) -> str:
    """The page of a report that `evaluate_model` made; what an older one lacks is said to be unknown.

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
        parts += [f"## {name.capitalize()}", "", *_table(tier_lines(name, tier)), ""]
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


def _table(lines: Iterable[Line]) -> list[str]:
    head = ["measure", "score", "95 % interval", "aim", "ceiling", "floors", "clips"]
    rows = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return rows + ["| " + " | ".join(map(str, line[: len(head)])) + " |" for line in lines if line.on_page]


def tier_lines(name: str, tier: dict[str, Any]) -> Iterator[Line]:
    """What is said of the scores of a tier, as far as they were measured; `name` is "tier 1" ..."""
    whole = TierScores(name, tier)
    for measure in MEASURES:
        scores = measure.scores_of(tier)
        if scores is not None:
            yield from measure.lines(scores, whole)
    if "field" in tier:
        yield from field_lines(tier["field"])


def table(report: dict[str, Any]) -> Table:
    """The scores for the screen: a row per measure, its ceilings and floors below it, and a column per tier."""
    budget = report["budget"]
    prompts = f"{budget['prompts']} prompts x {budget['seeds']} {_seeds(budget['seeds'])} per split"
    drawn = Table(title=f"{report['model']} ({report['hash'][:12]}), {prompts}")
    drawn.add_column("measure", no_wrap=True)
    for tier in report["scores"]:
        drawn.add_column(tier)
    columns = [_cells(tier_lines(name, tier)) for name, tier in report["scores"].items()]
    for row in dict.fromkeys(row for column in columns for row in column):
        drawn.add_row(row[1], *(column.get(row, "") for column in columns))
    return drawn


def _cells(lines: Iterable[Line]) -> dict[tuple[str, str], str]:
    """What stands in the column of a tier, by measure and name of the row."""
    cells: dict[tuple[str, str], str] = {}
    for line in lines:
        cells[line.measure, line.measure] = f"{line.score} ({line.interval})" if line.interval else line.score
        compared = {"ceiling": line.ceiling, "floors": line.floors}
        named = " and ".join(name for name, text in compared.items() if text)
        if named:
            cells[line.measure, f"  {named}"] = ", ".join(filter(None, compared.values()))
    return cells


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
        cells = (f"{percent(r)} ({100 * r['low']:.1f} – {100 * r['high']:.1f})" for r in rates.values())
        rows.append(f"| {scale} | " + " | ".join(cells) + " |")
    return rows
