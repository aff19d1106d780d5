"""`vgen train plot` and `vgen train replay`: looking at a run; and running a chain of recipes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vgen.cli.display import starting

if TYPE_CHECKING:
    from pathlib import Path


def plot(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, or its log.jsonl.")],
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help=".png, .svg or .pdf.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the picture if it is there.")] = False,
) -> None:
    """Draw the learning curves of a run."""
    from pathlib import Path

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


def replay(
    dump: Annotated[str, typer.Argument(metavar="FOLDER", help="nonfinite-step-N of a run, or process-N in it.")],
) -> None:
    """Do a step that was not finite again, and name the parameters whose gradient is not."""
    from pathlib import Path

    starting(f"reading {dump}")
    from vgen.training.run import replay_dump

    seen, again = replay_dump(Path(dump))
    typer.echo(f"step {seen['step']}: loss {seen['loss']}, gradient norm {seen['grad_norm']}")
    typer.echo(f"again: loss {again.loss}, gradient norm {again.grad_norm}")
    typer.echo("not finite: " + (", ".join(again.parameters) or "no gradient"))


def check_measure(dry_run: bool, measure: bool) -> None:
    """Refuse --measure for a run that trains."""
    from vgen.errors import RequestError

    if measure and not dry_run:
        raise RequestError("--measure times real steps for an estimate: give it together with --dry-run.")


def show_estimate(recipe: str, overrides: list[str], measure: bool) -> None:
    """Print what a recipe will take."""
    from pathlib import Path

    from vgen.training.chain import configs_next_to
    from vgen.training.estimate.dry_run import dry_run
    from vgen.training.recipe import load_recipe

    for line in dry_run(load_recipe(recipe, overrides), measure=measure, models=configs_next_to(Path(recipe))).lines():
        typer.echo(line)


def run_links(
    chain: Path,
    root: Path | None,
    overrides: list[str],
    *,
    tiny: bool = False,
    resume: bool = True,
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
