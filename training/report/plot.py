"""The learning curves of a run, drawn from its log.jsonl."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from vgen.errors import MediaError, RequestError

_SMOOTHED = 20
"""Lines of the training loss are means over a twentieth of their rows, once there are twice as many."""
_BUCKET = 0.25
"""Width of a bucket of sigma."""
_SHOWN_SHARE = 0.98
"""Of a panel's values; the first ones, far above the rest, may lie outside."""


def read_log(run: Path) -> list[dict[str, Any]]:
    """The rows of a run's log.

    Args:
        run: its folder, or a log.jsonl.
    Raises:
        MediaError: there is none, or it holds no rows.
    """
    path = run / "log.jsonl" if run.is_dir() else run
    if not path.is_file():
        raise MediaError(f"{path} does not exist; give the folder of a run (it holds log.jsonl).")
    rows = []
    for line in path.read_text().split("\n"):
        try:
            row = json.loads(line)
        except ValueError:
            continue  # the last line of a run that was killed
        if isinstance(row, dict) and "step" in row:
            rows.append(row)
    if not rows:
        raise MediaError(f"{path} has no rows yet; train at least to the first log line.")
    return rows


def plot_run(run: Path, output: Path) -> None:
    """Draw the loss, what validation measured, and the learning rate over the steps.

    Args:
        run: a run's folder or its log.jsonl.
        output: picture to write: .png, .svg or .pdf.
    Raises:
        RequestError: matplotlib is not installed, or `output` has another ending.
        MediaError: there is no log.
    """
    if output.suffix not in (".png", ".svg", ".pdf"):
        raise RequestError(f"output={output} must end in .png, .svg or .pdf.")
    if importlib.util.find_spec("matplotlib") is None:
        raise RequestError("plots need matplotlib; pip install 'vgen[plot]'.")
    rows = read_log(run)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = _groups(rows)
    figure = Figure(figsize=(9, 2.6 * len(groups) + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(groups), 1, squeeze=False, sharex=True)[:, 0]
    for panel, (title, names) in zip(panels, groups.items(), strict=True):
        shown: list[float] = []
        for name in names:
            points = [(row["step"], row[name]) for row in rows if isinstance(row.get(name), int | float)]
            shown += _draw(panel, name, *zip(*points, strict=True))
        panel.set_title(title, loc="left", fontsize=10)
        panel.set_ylabel("dB" if title.endswith("dB") else "loss" if "loss" in title else "")
        panel.grid(alpha=0.3)
        _set_limits(panel, shown)
        if len(names) > 1:
            panel.legend(fontsize=8, ncols=1, loc="upper left", bbox_to_anchor=(1.0, 1.03), frameon=False)
    panels[-1].set_xlabel("step")
    figure.suptitle((run if run.is_dir() else run.parent).resolve().name, fontsize=11)
    figure.savefig(output, dpi=120)


def _draw(panel: Any, name: str, steps: tuple[int, ...], values: tuple[float, ...]) -> list[float]:
    """Draw a curve, a noisy one as its mean, and return the values drawn."""
    label = name.rpartition("/")[2].replace("_", " ").replace("loss at", "sigma")
    if name == "validation/loss":
        label = "mean"
    if name.startswith("loss/sigma"):
        low = float(label.removeprefix("sigma "))
        label = f"sigma {low:g} to {low + _BUCKET:g}"
    line: dict[str, Any] = {"label": label, "linewidth": 1.3}
    if not name.startswith("loss") or len(values) <= 2 * _SMOOTHED:
        panel.plot(steps, values, marker="." if len(values) < 40 else None, **line)
        return list(values)
    smooth = _smooth(values)
    if name == "loss":
        panel.plot(steps, values, linewidth=0.5, alpha=0.4, color="tab:blue")
        line["color"] = "tab:blue"
    panel.plot(steps, smooth, **line)
    return smooth


def _set_limits(panel: Any, values: list[float]) -> None:
    """Leave the few largest values out where they would press all others together."""
    top = sorted(values)[min(len(values) - 1, int(_SHOWN_SHARE * len(values)))]
    if max(values) > 2 * top > 0:
        panel.set_ylim(bottom=min(0.0, *values), top=1.2 * top)


def _groups(rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Which curves share a panel: only quantities of the same kind do."""
    names = list(dict.fromkeys(name for row in rows for name, value in row.items() if isinstance(value, int | float)))
    wanted = {
        "training loss": ["loss"],
        "training loss by sigma": [name for name in names if name.startswith("loss/sigma")],
        "training loss by task": [name for name in names if name.startswith("loss/") and "sigma" not in name],
        "validation loss at fixed sigma": sorted(name for name in names if name.startswith("validation/loss")),
        "validation PSNR in dB": [name for name in names if name.startswith("validation/") and "psnr" in name],
        "validation SSIM": [name for name in names if name.startswith("validation/") and "ssim" in name],
        "learning rate": ["learning_rate"],
    }
    return {
        title: present for title, chosen in wanted.items() if (present := [name for name in chosen if name in names])
    }


def _smooth(values: tuple[float, ...]) -> list[float]:
    """Mean over a window round each value, narrower towards both ends."""
    reach = len(values) // _SMOOTHED // 2
    means = []
    for place in range(len(values)):
        half = min(reach, place, len(values) - 1 - place)
        window = values[place - half : place + half + 1]
        means.append(sum(window) / len(window))
    return means
