"""`vgen evaluate`: the scores of a model on SpriteWorld, or of a fine-tuning run on its footage."""

from __future__ import annotations

from typing import Annotated

import typer


def evaluate(
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="A run of `vgen train lora`: base against its checkpoints.")
    ] = None,
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
    """Score a model: how often a judge finds what was asked for; or a RUN: what it learnt, and its best checkpoint."""
    from pathlib import Path

    if run is not None:
        from vgen.training.evaluate_run import evaluate_run

        evaluate_run(Path(run), typer.echo, device=device or "auto")
        return

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
