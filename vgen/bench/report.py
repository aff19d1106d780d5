"""What is said: tables of one report and of two, and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table

from vgen.bench.scenarios import STAGES
from vgen.errors import MediaError, RequestError, counted
from vgen.io.files import read_json


def read(file: str | Path) -> dict[str, Any]:
    """A report from its file.

    Raises:
        MediaError: it is not there, or is no report.
    """
    report = read_json(Path(file), MediaError)
    if report.get("schema") != 1 or "arms" not in report:
        raise MediaError(f"{file} is not a report of this version: give a file that `vgen bench -o` wrote.")
    return report


def tables(report: dict[str, Any]) -> Group:
    """One report as tables."""
    scenario, machine = report["scenario"], report["machine"]
    size = f"{scenario['width']}x{scenario['height']}x{scenario['num_frames']}"
    title = (
        f"{scenario['name']} ({scenario['config']}): {size}, {counted(scenario['num_inference_steps'], 'step')}, "
        f"guidance {scenario['guidance_scale']:g}, {scenario['dtype']}, {machine['device']}, "
        f"{machine['threads']} threads"
    )
    clock = "" if report.get("clock", "wall") == "wall" else " of the processor"
    times = Table(title=title, caption=f"seconds{clock}: median (90 %, least)")
    times.add_column("stage")
    for name in report["arms"]:
        times.add_column(name, justify="right")
    for stage in STAGES:
        cells = [_times(arm["stages"].get(stage)) for arm in report["arms"].values()]
        if any(cells):
            times.add_row(stage, *cells)
    facts = Table(title="what each did")
    facts.add_column("")
    for name in report["arms"]:
        facts.add_column(name, justify="right")
    for label, show in _FACTS.items():
        facts.add_row(label, *(show(arm) for arm in report["arms"].values()))
    lossy = {name for name, arm in report["arms"].items() if arm["lossy"]}
    exact_ratios = {peer: by_stage for peer, by_stage in report["ratios"].items() if peer not in lossy}
    lossy_ratios = {peer: by_stage for peer, by_stage in report["ratios"].items() if peer in lossy}
    titles = (
        (exact_ratios, "how many times as long the other takes (above 1: vgen is faster)"),
        (lossy_ratios, "LOSSY, another result: how many times as long it takes (below 1: faster than exact)"),
    )
    shown = [_ratios(ratios, title) for ratios, title in titles if ratios]
    return Group(times, facts, *shown, *([_errors(report, lossy)] if lossy else []))


def _errors(report: dict[str, Any], lossy: set[str]) -> Table:
    """Of the lossy arms alone: how much faster, and how far from the exact clips."""
    arms = {name: arm for name, arm in report["arms"].items() if name in lossy and "error" in arm}
    other = next((arm["error"]["other_seed"] for arm in arms.values()), 0.0)
    table = Table(
        title="LOSSY: error against the exact clips of the same noise",
        caption=f"latents: difference over size, root mean square; another noise altogether comes to {other:.0%}",
    )
    for column in ("way", "steps are faster", "end to end", "latents", "PSNR, dB"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for name, arm in arms.items():
        times = [report["ratios"][name].get(stage) for stage in ("denoise", "end_to_end")]
        faster = ["" if ratio is None else f"{1 / ratio['median']:.2f} x" for ratio in times]
        error = arm["error"]
        table.add_row(name.removeprefix("lossy:"), *faster, f"{error['relative_rms']:.1%}", f"{error['psnr']:.1f}")
    return table


def _ratios(by_peer: dict[str, Any], title: str) -> Table:
    ratios = Table(title=title)
    for column in ("against", "stage", "median", "interval", "confidence"):
        ratios.add_column(column)
    for peer, by_stage in by_peer.items():
        for stage, ratio in by_stage.items():
            between = f"{ratio['low']:.3f} to {ratio['high']:.3f}"
            ratios.add_row(peer, stage, f"{ratio['median']:.3f}", between, f"{ratio['confidence']:.1%}")
    return ratios


def _times(stage: dict[str, Any] | None) -> str:
    return "" if stage is None else f"{stage['p50']:.4f} ({stage['p90']:.4f}, {stage['min']:.4f})"


def _share(arm: dict[str, Any], stage: str, of: str) -> str:
    value = arm.get(f"{stage}_rate", {}).get(of)
    return "" if value is None else f"{value:.1%}"


def _mebibytes(arm: dict[str, Any], key: str) -> str:
    return "" if arm.get(key) is None else f"{arm[key] / 2**20:.0f}"


def _number(arm: dict[str, Any], key: str) -> str:
    return "" if arm.get(key) is None else f"{arm[key]:.3g}"


_FACTS = {
    "first run, s": lambda arm: f"{arm['cold']['first_run_seconds']:.2f}",
    "steps/s": lambda arm: _number(arm, "steps_per_second"),
    "frames/s": lambda arm: _number(arm, "frames_per_second"),
    "real time factor": lambda arm: _number(arm, "real_time_factor"),
    "step, TFLOP/s": lambda arm: f"{arm['step_rate']['flops_per_second'] / 1e12:.3g}" if "step_rate" in arm else "",
    "step, of a matmul's rate": lambda arm: _share(arm, "step", "mfu_matmul"),
    "step, of the datasheet": lambda arm: _share(arm, "step", "mfu_datasheet"),
    "decode, of a matmul's rate": lambda arm: _share(arm, "decode", "mfu_matmul"),
    "peak of the process, or of the GPU, MiB": lambda arm: _mebibytes(arm, "peak_bytes"),
    "weights, MiB": lambda arm: _mebibytes(arm, "weight_bytes"),
    "allocated above them, MiB": lambda arm: _mebibytes(arm, "allocated_bytes"),
    "attention": lambda arm: ", ".join(name.removeprefix("aten::") for name in arm["attention"]),
    "compiled": lambda arm: arm["compiled"] or "no",
    "lossy": lambda arm: ", ".join(arm["lossy"]) or "no",
    "output": lambda arm: arm["output_sha256"][:12],
}


def compared(first: dict[str, Any], second: dict[str, Any], names: tuple[str, str]) -> Table:
    """The medians of two reports side by side.

    Args:
        first, second: reports of the same scenario.
        names: for the columns.
    Raises:
        RequestError: they are about different work.
    """
    differing = [
        key for key, value in first["scenario"].items() if key != "name" and second["scenario"].get(key) != value
    ]
    if differing:
        differences = ", ".join(
            f"{key} {first['scenario'][key]!r} and {second['scenario'].get(key)!r}" for key in differing
        )
        raise RequestError(
            f"the two reports are about different work ({differences}): compare reports of one scenario."
        )
    same = first["machine"]["device"] == second["machine"]["device"]
    caption = "" if same else f"on different machines: {first['machine']['device']} and {second['machine']['device']}"
    table = Table(title=f"{first['scenario']['name']}: medians in seconds", caption=caption or None)
    for column in ("arm", "stage", names[0], names[1], "second takes"):
        table.add_column(column)
    for name, arm in first["arms"].items():
        other = second["arms"].get(name, {"stages": {}})
        for stage, times in arm["stages"].items():
            if stage in other["stages"]:
                before, after = times["p50"], other["stages"][stage]["p50"]
                table.add_row(name, stage, f"{before:.4f}", f"{after:.4f}", f"{after / before:.3f} x")
    return table


def plot(report: dict[str, Any], file: Path) -> None:
    """A picture of the stages of all arms, each run a dot.

    Args:
        report: of `run`.
        file: .png, .svg or .pdf.
    Raises:
        RequestError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RequestError(f"plot={str(file)!r} needs matplotlib: pip install 'vgen[plot]'.") from error
    stages = [stage for stage in STAGES if any(stage in arm["stages"] for arm in report["arms"].values())]
    figure = Figure(figsize=(2.2 * len(stages) + 1, 3.6), layout="constrained")
    axes = figure.subplots(1, len(stages), squeeze=False)[0]
    for axis, stage in zip(axes, stages, strict=True):
        for place, (name, arm) in enumerate(report["arms"].items()):
            times = arm["stages"].get(stage)
            if times is not None:
                axis.bar(place, times["p50"], color=f"C{place}", alpha=0.5, label=name)
                axis.plot([place] * len(times["seconds"]), times["seconds"], ".", color=f"C{place}", markersize=4)
        axis.set_title(stage, fontsize=9)
        axis.set_xticks([])
        axis.set_ylim(bottom=0)
    axes[0].set_ylabel("seconds")
    figure.legend(*axes[-1].get_legend_handles_labels(), loc="outside lower center", ncols=len(report["arms"]))
    figure.suptitle(f"{report['scenario']['name']} on {report['machine']['device']}", fontsize=10)
    figure.savefig(file, dpi=120)
