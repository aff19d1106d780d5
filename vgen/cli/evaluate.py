"""`vgen evaluate`: the scores of a model on SpriteWorld, or of a fine-tuning run on its footage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

_VBENCH = "For VBench"
_FIELD = "The field's scores, from weights on this machine"


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
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the JSON file, or clips, if there.")] = False,
    export: Annotated[
        str | None,
        typer.Option(
            "--export-vbench",
            metavar="FOLDER",
            help="Make clips for VBench, and score nothing.",
            rich_help_panel=_VBENCH,
        ),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            "--prompts", metavar="FILE", help="Its prompts, one a line; else SpriteWorld's.", rich_help_panel=_VBENCH
        ),
    ] = None,
    num_prompts: Annotated[
        int, typer.Option("--num-prompts", metavar="N", min=1, help="Of SpriteWorld's.", rich_help_panel=_VBENCH)
    ] = 64,
    samples: Annotated[
        int, typer.Option("--samples", metavar="N", min=1, help="Clips a prompt.", rich_help_panel=_VBENCH)
    ] = 5,
    clip_model: Annotated[
        str | None,
        typer.Option("--clip-model", metavar="FOLDER", help="A local CLIP: CLIP score.", rich_help_panel=_FIELD),
    ] = None,
    fvd_model: Annotated[
        str | None,
        typer.Option("--fvd-model", metavar="FILE", help="The local TorchScript I3D: FVD.", rich_help_panel=_FIELD),
    ] = None,
    lpips: Annotated[
        str | None,
        typer.Option("--lpips", metavar="FOLDER", help="Local LPIPS weights: LPIPS.", rich_help_panel=_FIELD),
    ] = None,
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
    if export is not None:
        if output is not None or tasks != "basic" or quick or clip_model or fvd_model or lpips:
            raise RequestError("--export-vbench makes clips and scores nothing: leave the options for scores out.")
        from vgen.cli.vbench import export_vbench

        fields = {"model": model, "seed": seed, **({"device": device} if device is not None else {})}
        export_vbench(export, fields, prompts, num_prompts, samples, overwrite)
        return
    if prompts is not None:
        raise RequestError("--prompts is for --export-vbench; scores are of SpriteWorld's prompts.")
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

    field = _field_weights(clip_model, fvd_model, lpips)
    evaluate_model(
        request.model, quick=quick, output=output, device=device, seed=request.seed or 0, tasks=tasks, **field
    )


def _field_weights(clip_model: str | None, fvd_model: str | None, lpips: str | None) -> dict[str, Any]:
    """The argument `field` where any weights are given, checked."""
    if clip_model is None and fvd_model is None and lpips is None:
        return {}
    from vgen.training.field_metrics import FieldWeights

    weights = FieldWeights(*(None if text is None else Path(text) for text in (clip_model, fvd_model, lpips)))
    weights.check()
    return {"field": weights}
