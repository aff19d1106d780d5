"""`vgen evaluate`: the scores of a model on SpriteWorld."""

from __future__ import annotations

from typing import Annotated

import typer


def evaluate(
    model: Annotated[str, typer.Option("--model", metavar="NAME|FOLDER", help="The model to score.")] = "sprites",
    quick: Annotated[bool, typer.Option("--quick", help="Fewer clips: minutes in place of an hour.")] = False,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help="Write the scores as JSON.")
    ] = None,
    tasks: Annotated[
        str,
        typer.Option("--tasks", metavar="basic|all", help="all: prediction, interpolation and completion, too."),
    ] = "basic",
    seed: Annotated[str, typer.Option("--seed", metavar="N", help="Seed of all noise.")] = "0",
    device: Annotated[str | None, typer.Option("--device", metavar="DEVICE", help="cpu, cuda, cuda:N or mps.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the JSON file if it is there.")] = False,
) -> None:
    """Score a model: how often a judge finds what was asked for, beside ceilings and floors."""
    from pathlib import Path

    from vgen.cli.jobs import Model, choose_device
    from vgen.errors import OutputError, RequestError
    from vgen.io.atomic import exists_message
    from vgen.io.output import check_writable
    from vgen.request import GenerateRequest

    if tasks not in ("basic", "all"):
        raise RequestError(f"tasks={tasks!r} is not known: use basic or all.")
    request = GenerateRequest.create(prompt="scores", model=model, seed=seed, device=device)
    if output is not None:
        target = Path(output)
        if target.suffix != ".json":
            raise OutputError(f"output={output!r} must end in .json.")
        if not target.absolute().parent.is_dir():
            raise OutputError(f"the folder {target.absolute().parent} does not exist; make it first.")
        check_writable(target.absolute().parent)
        if target.exists() and not overwrite:
            raise OutputError(exists_message(target))
    Model.find(request.model)
    device = choose_device(request.device or "auto")
    from vgen.training.evaluate import evaluate_model

    evaluate_model(request.model, quick=quick, output=output, device=device, seed=request.seed or 0, tasks=tasks)
