"""`vgen lora`: LoRA files."""

from __future__ import annotations

from typing import Annotated

import typer

from vgen.cli.display import starting
from vgen.errors import counted

app = typer.Typer(help="LoRA files.", no_args_is_help=True)


@app.callback()
def _root() -> None:
    """LoRA files."""


@app.command()
def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The folder of a run of `vgen train lora`.")],
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="The .safetensors file.")],
    layout: Annotated[
        str, typer.Option("--format", metavar="diffusers|comfy|original", help="Whose names the tensors have.")
    ] = "diffusers",
    checkpoint: Annotated[
        str | None,
        typer.Option("--checkpoint", metavar="NAME", help="Which; the best by `vgen evaluate`, else the newest."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there already.")] = False,
) -> None:
    """Write the LoRA of a run as one file."""
    from pathlib import Path

    starting(f"reading {run}")
    from vgen.training.fine_tune.export_lora import export_lora

    chosen, layers = export_lora(Path(run), Path(output), layout, checkpoint, overwrite)
    typer.echo(f"{output}: {counted(layers, 'layer')} of {chosen.name}, in {layout}'s names.")
