"""`vgen train`: training from a recipe."""

from __future__ import annotations

from typing import Annotated

import typer

from vgen.cli import train_tools
from vgen.cli.display import starting

app = typer.Typer(help="Train a model.", no_args_is_help=True)


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
    resume: Annotated[
        bool, typer.Option("--resume/--fresh", help="Go on from the newest checkpoint, or refuse if there is one.")
    ] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Train nothing; estimate memory and time, from shapes alone.")
    ] = False,
    measure: Annotated[
        bool, typer.Option("--measure", help="With --dry-run: time real steps, for minutes. Models must be there.")
    ] = False,
) -> None:
    """Train what a recipe describes, and export the trained model."""
    from pathlib import Path

    from vgen.errors import RequestError

    train_tools.check_measure(dry_run, measure)
    if not Path(recipe).is_file():
        raise RequestError(f"recipe={recipe!r}: there is no such file.")
    for override in overrides or []:
        if "=" not in override:
            raise RequestError(f"override {override!r} is not of the form KEY=VALUE, for instance optimizer.lr=1e-3.")
    starting(f"reading {recipe}")
    from vgen.engine.memory.allocator import keep_freed_memory
    from vgen.training.chain import is_chain

    keep_freed_memory()
    if is_chain(Path(recipe)):
        train_tools.run_links(
            Path(recipe), None, list(overrides or []), resume=resume, dry_run=dry_run, measure=measure
        )
        return
    if dry_run:
        train_tools.show_estimate(recipe, list(overrides or []), measure)
        return
    from vgen.training.run import leave_processes, run_recipe

    folder = run_recipe(recipe, list(overrides or []), resume=resume)
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
        str, typer.Option("--output", "-o", metavar="FOLDER", help="Where the runs go, one a recipe.")
    ] = "runs",
    tiny: Annotated[
        bool, typer.Option("--tiny", help="A run-through in minutes: a step of each stage; the model is worth nothing.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume/--fresh", help="Go on where the chain was stopped, or refuse if it was begun.")
    ] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Train nothing; estimate memory and time, from shapes alone.")
    ] = False,
    measure: Annotated[
        bool, typer.Option("--measure", help="With --dry-run: time real steps, for minutes. Models must be there.")
    ] = False,
) -> None:
    """Train a model like the embedded one from nothing, recipe after recipe; stopped, the same command continues."""
    from pathlib import Path

    starting("reading the recipes")
    from vgen.engine.memory.allocator import keep_freed_memory
    from vgen.training.chain import embedded_chain

    train_tools.check_measure(dry_run, measure)
    keep_freed_memory()
    root = Path(output)
    if tiny and output == "runs":
        root = Path("runs") / "tiny"
    train_tools.run_links(
        embedded_chain(), root, list(overrides or []), tiny=tiny, resume=resume, dry_run=dry_run, measure=measure
    )


app.command("plot")(train_tools.plot)
app.command("replay")(train_tools.replay)
