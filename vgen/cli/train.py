"""`vgen train`: training from a recipe or a chain of them, and looking at a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vgen.cli.display import starting

app = typer.Typer(help="Train a model.", no_args_is_help=True)

Resume = Annotated[
    bool, typer.Option("--resume/--fresh", help="Go on from the newest checkpoint, or refuse if there is one.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Train nothing; estimate memory and time, from shapes alone.")]
Measure = Annotated[
    bool, typer.Option("--measure", help="With --dry-run: time real steps, for minutes. Models must be there.")
]


@app.callback()
def _root() -> None:
    """Train a model."""


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(metavar="FILE", help="A YAML recipe, or a chain; see configs/train/.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Changes to the recipe, e.g. optimizer.lr=1e-3."),
    ] = None,
    resume: Resume = True,
    dry_run: DryRun = False,
    measure: Measure = False,
) -> None:
    """Train what a recipe describes, and export the trained model."""
    from vgen.errors import RequestError

    _check_measure(dry_run, measure)
    if not Path(recipe).is_file():
        raise RequestError(f"recipe={recipe!r}: there is no such file.")
    for override in overrides or []:
        if "=" not in override:
            raise RequestError(f"override {override!r} is not of the form KEY=VALUE, for instance optimizer.lr=1e-3.")
    starting(f"reading {recipe}")
    from vgen.engine.memory.allocator import keep_freed_memory
    from vgen.training.chain import configs_next_to, is_chain
    from vgen.training.estimate.dry_run import dry_run as estimate
    from vgen.training.recipe import load_recipe
    from vgen.training.run import leave_processes, run_recipe

    keep_freed_memory()
    changes = list(overrides or [])
    if is_chain(Path(recipe)):
        _run_chain(Path(recipe), None, changes, resume=resume, dry_run=dry_run, measure=measure)
    elif dry_run:
        models = configs_next_to(Path(recipe))
        for line in estimate(load_recipe(recipe, changes), measure=measure, models=models).lines():
            typer.echo(line)
    else:
        folder = run_recipe(recipe, changes, resume=resume)
        leave_processes()
        typer.echo(f"The run is in {folder}.")


@app.command()
def sprites(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[[RECIPE:]KEY=VALUE]...", help="Changes to all recipes, or to one; e.g. num_threads=4."
        ),
    ] = None,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FOLDER", help="Where the runs go, one per recipe.")
    ] = "runs",
    tiny: Annotated[
        bool, typer.Option("--tiny", help="A run-through in minutes: a step of each stage; the model is worth nothing.")
    ] = False,
    resume: Resume = True,
    dry_run: DryRun = False,
    measure: Measure = False,
) -> None:
    """Train a model like the embedded one from nothing, recipe after recipe; stopped, the same command continues."""
    starting("reading the recipes")
    from vgen.engine.memory.allocator import keep_freed_memory
    from vgen.training.chain import embedded_chain

    _check_measure(dry_run, measure)
    keep_freed_memory()
    root = Path("runs") / "tiny" if tiny and output == "runs" else Path(output)
    _run_chain(
        embedded_chain(), root, list(overrides or []), tiny=tiny, resume=resume, dry_run=dry_run, measure=measure
    )


@app.command()
def plot(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, or its log.jsonl.")],
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help=".png, .svg or .pdf.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the picture if it is there.")] = False,
) -> None:
    """Draw the learning curves of a run."""
    from vgen.errors import OutputError
    from vgen.io.files import exists_message
    from vgen.training.report.plot import plot_run

    target = Path(output)
    if target.exists() and not overwrite:
        raise OutputError(exists_message(target))
    if not target.absolute().parent.is_dir():
        raise OutputError(f"the folder {target.absolute().parent} does not exist; make it first.")
    plot_run(Path(run), target)
    typer.echo(f"wrote {target}")


@app.command()
def replay(
    dump: Annotated[str, typer.Argument(metavar="FOLDER", help="nonfinite-step-N of a run, or process-N in it.")],
) -> None:
    """Do a step that was not finite again, and name the parameters whose gradient is not."""
    starting(f"reading {dump}")
    from vgen.training.run import replay_dump

    seen, again = replay_dump(Path(dump))
    typer.echo(f"step {seen['step']}: loss {seen['loss']}, gradient norm {seen['grad_norm']}")
    typer.echo(f"again: loss {again.loss}, gradient norm {again.grad_norm}")
    typer.echo("not finite: " + (", ".join(again.parameters) or "no gradient"))


def _check_measure(dry_run: bool, measure: bool) -> None:
    """Refuse --measure for a run that trains."""
    from vgen.errors import RequestError

    if measure and not dry_run:
        raise RequestError("--measure times real steps for an estimate: give it together with --dry-run.")


def _run_chain(
    chain: Path,
    root: Path | None,
    overrides: list[str],
    *,
    tiny: bool = False,
    resume: bool,
    dry_run: bool,
    measure: bool,
) -> None:
    """Run a chain of recipes, or print what it will take."""
    from vgen.training.chain import dry_run_chain, read_chain, run_chain
    from vgen.training.run import leave_processes

    links = read_chain(chain, root, overrides, tiny)
    if dry_run:
        dry_run_chain(links, typer.echo, measure)
        return
    finished = run_chain(links, typer.echo, resume)
    leave_processes()
    if finished:
        typer.echo(f"The model is {links[-1].export}; `vgen generate PROMPT --model {links[-1].export}` uses it.")
