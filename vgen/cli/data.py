"""`vgen data`: a folder of footage to a data set, its captions, and what a model trains on."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(help="Footage to training data.", no_args_is_help=True)


@app.callback()
def _root() -> None:
    """Footage to training data."""


@app.command()
def ingest(
    footage: Annotated[str, typer.Argument(metavar="FOOTAGE", help="A folder of videos and pictures, or one file.")],
    output: Annotated[str, typer.Option("--output", "-o", metavar="FOLDER", help="The data set.")],
    cut_threshold: Annotated[
        float, typer.Option("--cut-threshold", min=0, help="Higher finds fewer cuts; 0 cuts nothing.")
    ] = 3.0,
    min_frames: Annotated[int, typer.Option("--min-frames", min=1, help="Shorter shots are dropped.")] = 9,
    static_below: Annotated[
        float, typer.Option("--static-below", min=0, help="Grey levels of change under which a shot is static.")
    ] = 3.0,
    black_below: Annotated[float, typer.Option("--black-below", min=0, help="Grey level under which it is black.")] = 24.0,
    duplicate_below: Annotated[
        float, typer.Option("--duplicate-below", min=0, help="Difference under which two shots are the same; 0 is off.")
    ] = 0.12,
    crop_bars: Annotated[bool, typer.Option("--crop-bars/--keep-bars", help="Cut black bars off.")] = True,
) -> None:
    """Cut footage into shots, and drop what is static, black, too short or there twice, saying why."""
    from pathlib import Path

    from vgen.training.data.footage.ingest import IngestSettings, summary
    from vgen.training.data.footage.ingest import ingest as run

    settings = IngestSettings(cut_threshold, min_frames, static_below, black_below, duplicate_below, crop_bars)
    made = run(Path(footage), Path(output), settings, typer.echo)
    for entry in made.data.dropped:
        if entry.id:
            typer.echo(f"dropped {entry.id} ({entry.num_frames} frames): {entry.reason}")
    counts = summary(made)
    typer.echo(
        f"{counts['clips']} clips, {counts['frames']} frames; {counts['dropped']} shots dropped, "
        f"{counts['failed']} files skipped. {'See' if made.changed else 'Nothing new; see'} {output}/report.html."
    )
    if not made.data.clips:
        raise typer.Exit(2)
