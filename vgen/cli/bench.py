"""`vgen bench`: how fast this machine generates, next to a peer, and whether both compute the same."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from vgen.cli.display import say, show, showing, starting
from vgen.errors import counted

if TYPE_CHECKING:
    from rich.console import Console

    from vgen.bench.scenarios import Scenario

app = typer.Typer(help="Measure speed, alone or against diffusers; compare two reports.", no_args_is_help=False)


@app.callback(invoke_without_command=True)
def bench(
    context: typer.Context,
    scenario: Annotated[
        str | None, typer.Option("--scenario", metavar="NAME", help="What to run; see `vgen bench list`.")
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            "--config", metavar="NAME|FOLDER", help="Another model: ltx-2b, ltx-13b (random weights), a folder."
        ),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            "--against",
            metavar="PEER",
            help="diffusers, diffusers-compiled, plain, without:PART, lossy:WAY, or an attention backend; may be given "
            "again.",
        ),
    ] = None,
    height: Annotated[int | None, typer.Option("--height", metavar="PIXELS", help="Not the scenario's.")] = None,
    width: Annotated[int | None, typer.Option("--width", metavar="PIXELS", help="Not the scenario's.")] = None,
    num_frames: Annotated[int | None, typer.Option("--num-frames", metavar="N", help="As above.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", metavar="N", help="As above.")] = None,
    guidance_scale: Annotated[float | None, typer.Option("--guidance-scale", metavar="W", help="As above.")] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", metavar="TYPE", help="float32, bfloat16 or float16.")] = None,
    threads: Annotated[int | None, typer.Option("--threads", metavar="N", help="Of the CPU.")] = None,
    rounds: Annotated[int, typer.Option("--rounds", metavar="N", min=1, help="Each runs every arm twice.")] = 10,
    within: Annotated[
        float | None,
        typer.Option("--within", metavar="SECONDS", help="End in about this time, with fewer rounds if need be."),
    ] = None,
    stages: Annotated[
        str | None, typer.Option("--stages", metavar="LIST", help="Only these, for instance step,end_to_end.")
    ] = None,
    clock: Annotated[
        str, typer.Option("--clock", metavar="CLOCK", help="wall; process counts this process alone (CPU).")
    ] = "wall",
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of weights and inputs.")] = 0,
    device: Annotated[str | None, typer.Option("--device", metavar="DEVICE", help="cpu, cuda or cuda:N.")] = None,
    output: Annotated[str | None, typer.Option("--output", "-o", metavar="FILE", help="The report, JSON.")] = None,
    plot: Annotated[
        str | None, typer.Option("--plot", metavar="FILE", help="Draw it (.png, .svg); needs the extra plot.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
    tune: Annotated[
        bool,
        typer.Option("--tune", help="Instead: find the fastest exact ways for this work, show and remember them."),
    ] = False,
) -> None:
    """Measure the stages of generating a clip. Parity is checked first: unequal results are not compared."""
    if context.invoked_subcommand is not None:
        return
    from pathlib import Path

    starting("loading what is measured")
    from vgen.bench.scenarios import choose_scenario, choose_stages
    from vgen.engine.device import choose_device

    chosen_device = choose_device(device or "auto")
    _check_outputs(output, plot, overwrite)
    changes = {
        "config": config,
        "height": height,
        "width": width,
        "num_frames": num_frames,
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
        "dtype": dtype,
        "threads": threads,
    }
    work = choose_scenario(scenario, str(chosen_device), changes)
    wanted = choose_stages(stages)

    if tune:
        _tune(work, chosen_device, rounds, seed)
        return
    import torch

    from vgen.bench import report as reports
    from vgen.bench.run import run
    from vgen.io.files import write_json

    report = run(
        work, tuple(against or ()), device=torch.device(chosen_device), say=_say,
        rounds=rounds, within=within, seed=seed, stages=wanted, clock=clock,
    )  # fmt: skip
    _console().print(reports.tables(report))
    if output is not None:
        write_json(Path(output), report)
    if plot is not None:
        reports.plot(report, Path(plot))


def _check_outputs(output: str | None, plot: str | None, overwrite: bool) -> None:
    """Refuse, before anything runs, names that cannot be written."""
    from pathlib import Path

    from vgen.errors import OutputError
    from vgen.io.files import exists_message

    for file, suffixes in ((output, (".json",)), (plot, (".png", ".svg", ".pdf"))):
        if file is None:
            continue
        if Path(file).suffix not in suffixes:
            raise OutputError(f"{file!r} must end in {' or '.join(suffixes)}.")
        if not Path(file).absolute().parent.is_dir():
            raise OutputError(f"the folder {Path(file).absolute().parent} does not exist; make it first.")
        if Path(file).exists() and not overwrite:
            raise OutputError(exists_message(Path(file)))


def _console() -> Console:
    """For tables: wide enough for them where the output is no terminal."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 160, markup=False)


def _say(line: str) -> None:
    typer.echo(line, err=True)


def _tune(work: Scenario, device: str, rounds: int, seed: int) -> None:
    """Measure what generation may choose from, and show it."""
    import torch

    from vgen.bench.tune import table, tune

    _console().print(table(tune(work, device=torch.device(device), rounds=rounds, seed=seed, say=_say)))


@app.command("compare")
def compare(
    first: Annotated[str, typer.Argument(metavar="A.json", help="A report of `vgen bench -o`.")],
    second: Annotated[str, typer.Argument(metavar="B.json", help="Another of the same scenario.")],
) -> None:
    """Two reports of the same scenario side by side."""
    from vgen.bench import report as reports

    _console().print(reports.compared(reports.read(first), reports.read(second), (first, second)))


@app.command("list")
def list_scenarios() -> None:
    """The scenarios that --scenario takes, and the models that --config takes."""
    from vgen.bench.scenarios import ARCHITECTURES, SCENARIOS

    for entry in SCENARIOS.values():
        guided = f"guidance {entry.guidance_scale:g}" if entry.guidance_scale > 1 else "no guidance"
        typer.echo(
            f"{entry.name:<14} {entry.config:<13} {entry.width}x{entry.height}x{entry.num_frames}, "
            f"{counted(entry.num_inference_steps, 'step')}, {guided}, {entry.dtype}"
        )
    typer.echo(f"\n--config: {', '.join(ARCHITECTURES)}, or a model folder")


@app.command("calibrate")
def calibrate(
    model: Annotated[str, typer.Option("--model", metavar="NAME|FOLDER", help="Whose.")] = "sprites",
    prompts: Annotated[
        list[str] | None,
        typer.Option("--prompt", metavar="TEXT", help="Clips to measure on; two examples if left out."),
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", metavar="N", help="Denoising steps; the model's own.")] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of the first clip.")] = 0,
    device: Annotated[str | None, typer.Option("--device", metavar="DEVICE", help="cpu, cuda or cuda:N.")] = None,
) -> None:
    """Measure what --step-cache magcache needs of a model, once; it is kept in the user's cache folder."""
    from dataclasses import replace
    from importlib.resources import files

    from vgen.engine.lossy.magnitudes import magnitudes_file, write_magnitudes
    from vgen.events import Loading
    from vgen.hub.model import Model
    from vgen.jobs.load import load_pipeline, settle_machine
    from vgen.jobs.plan import prepare
    from vgen.request.request import GenerateRequest

    examples = files("vgen.assets").joinpath("prompts/eight.txt").read_text(encoding="utf-8").splitlines()[:2]
    asked = prompts or examples
    given = {"num_inference_steps": steps, "seed": seed, "device": device}
    fields = {name: value for name, value in given.items() if value is not None}
    model_info = Model.find(model)
    job = prepare(GenerateRequest.create(prompt=asked[0], model=model, **fields), model_info, "unwritten.mp4", True)
    with showing():
        show(Loading(model))
        pipe = load_pipeline(replace(job, request=settle_machine(job.request)), asked, say)
        pipe.observer = show

        from vgen.engine.lossy.step_cache import measure_magnitudes

        settings = {"num_frames": job.request.num_frames, **job.request.call_settings()}
        measured = measure_magnitudes(pipe, asked, seed, **settings)
    file = magnitudes_file(model_info.folder)
    write_magnitudes(measured, file)
    ratios = f"ratios {min(measured.ratios):.3f} to {max(measured.ratios):.3f}"
    typer.echo(f"{file}: {counted(len(measured.sigmas), 'step')}, {ratios}")
