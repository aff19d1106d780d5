"""`vgen data`: a folder of footage to a data set, its captions, and what a model trains on."""

from __future__ import annotations

from typing import Annotated

import typer

from vgen.cli.display import starting
from vgen.errors import counted

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
    black_below: Annotated[
        float, typer.Option("--black-below", min=0, help="Grey level under which it is black.")
    ] = 24.0,
    duplicate_below: Annotated[
        float, typer.Option("--duplicate-below", min=0, help="Difference under which two shots are the same; 0 is off.")
    ] = 0.12,
    crop_bars: Annotated[bool, typer.Option("--crop-bars/--keep-bars", help="Cut black bars off.")] = True,
) -> None:
    """Cut footage into shots, and drop what is static, black, too short or there twice, saying why."""
    from pathlib import Path

    starting(f"looking through {footage}")
    from vgen.training.data.footage.ingest import IngestSettings
    from vgen.training.data.footage.ingest import ingest as run

    settings = IngestSettings(cut_threshold, min_frames, static_below, black_below, duplicate_below, crop_bars)
    result = run(Path(footage), Path(output), settings, typer.echo)
    for entry in result.data.dropped:
        if entry.id:
            typer.echo(f"dropped {entry.id} ({counted(entry.num_frames, 'frame')}): {entry.reason}")
    kept, frames = result.data.clips, sum(clip.num_frames for clip in result.data.clips)
    shots = counted(len(result.data.dropped) - len(result.failed), "shot")
    typer.echo(f"{counted(len(kept), 'clip')}, {counted(frames, 'frame')}; {shots} dropped.")
    others = ", ".join(f"{count} {kind}" for kind, count in result.others.items())
    typer.echo(
        f"{counted(result.used, 'file')} used, {len(result.failed)} skipped, {sum(result.others.values())} not "
        f"footage{f' ({others})' if others else ''}."
    )
    typer.echo(f"{'See' if result.changed else 'Nothing new; see'} {output}/report.html.")
    if not result.data.clips:
        raise typer.Exit(2)


@app.command()
def caption(
    data: Annotated[str, typer.Argument(metavar="DATA", help="The data set of `vgen data ingest`.")],
    source: Annotated[
        str, typer.Option("--from", metavar="sidecar|text|trigger|model", help="Where the captions come from.")
    ] = "sidecar",
    text: Annotated[str, typer.Option("--text", metavar="TEXT", help="One caption for all clips.")] = "",
    trigger: Annotated[
        str, typer.Option("--trigger", metavar="WORD", help="A word put before a clip's captions.")
    ] = "",
    model: Annotated[
        str, typer.Option("--model", metavar="FOLDER", help="A vision-language model of transformers, on this machine.")
    ] = "",
    question: Annotated[str, typer.Option("--question", metavar="TEXT", help="What the model is asked.")] = "",
    device: Annotated[str | None, typer.Option("--device", metavar="DEVICE", help="cpu, cuda, cuda:N or mps.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace captions that are there.")] = False,
) -> None:
    """Give every clip its captions; what is there already, or was edited by hand, is kept."""
    from vgen.errors import RequestError
    from vgen.training.data.footage import captions
    from vgen.training.data.footage.records import DataSet

    opened = DataSet.open(data)
    describe: captions.Describe
    if source == "sidecar":
        describe = captions.sidecar
    elif source == "text":
        describe = captions.same_text(text)
    elif source == "trigger":
        describe = captions.with_trigger(trigger, lambda clip: opened.captions(clip) or captions.sidecar(clip))
    elif source == "model":
        from vgen.engine.device import choose_device
        from vgen.training.data.footage.describe import QUESTION, describer

        describe = describer(model, question or QUESTION, choose_device(device or "auto"))
    else:
        raise RequestError(f"--from {source!r} is not known: use sidecar, text, trigger or model.")
    written, missing = captions.caption(opened, describe, typer.echo, overwrite or source == "trigger")
    typer.echo(f"{counted(written, 'clip')} captioned now, {missing} without a caption. See {data}/captions/.")
    if missing:
        raise typer.Exit(2)


@app.command()
def cache(
    data: Annotated[str, typer.Argument(metavar="DATA", help="The data set.")],
    model: Annotated[str, typer.Option("--model", metavar="NAME|FOLDER", help="What will be trained.")] = "sprites",
    num_frames: Annotated[
        str | None,
        typer.Option("--num-frames", metavar="LIST", help="Lengths, such as 17,9; by the model if left out."),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option("--size", metavar="WxH[,WxH]", help="Sizes; for each aspect ratio its own if left out."),
    ] = None,
    frame_rate: Annotated[
        str | None,
        typer.Option("--frame-rate", metavar="FPS|keep", help="What footage is resampled to; the model's own."),
    ] = None,
    windows: Annotated[
        int, typer.Option("--windows", min=0, help="Most samples of a clip; 0: as many as fit side by side.")
    ] = 0,
    allow_upscale: Annotated[bool, typer.Option("--allow-upscale", help="Take footage smaller than its size.")] = False,
    text_encoder: Annotated[
        str | None, typer.Option("--text-encoder", metavar="FOLDER", help="For models that come without one.")
    ] = None,
    device: Annotated[str | None, typer.Option("--device", metavar="DEVICE", help="cpu, cuda, cuda:N or mps.")] = None,
) -> None:
    """Encode what a model trains on: latents by bucket, and captions; what is there already is not made again."""
    from vgen.engine.device import choose_device
    from vgen.training.data.footage.commands import geometry_for
    from vgen.training.data.footage.records import DataSet

    opened = DataSet.open(data)
    starting(f"loading {model}")
    from vgen.pipelines.loading.model_files import ModelParts
    from vgen.training.data.footage.cache import fill_cache

    parts = ModelParts.find(model, text_encoder)
    geometry = geometry_for(parts, num_frames, size, frame_rate, windows, allow_upscale)
    place, index, written = fill_cache(opened, parts, geometry, choose_device(device or "auto"), typer.echo)
    for entry in index.dropped:
        typer.echo(f"dropped {entry.id}: {entry.reason}")
    for bucket, count in index.buckets().items():
        typer.echo(f"{counted(count, 'sample'):>14} of {bucket}")
    typer.echo(
        f"{counted(written, 'sample')} encoded now, {len(index.samples)} in all; "
        f"{counted(len(index.dropped), 'clip')} dropped. {place}"
    )


@app.command("filter")
def filter_clips(
    data: Annotated[str, typer.Argument(metavar="DATA", help="The data set, captioned.")],
    model: Annotated[str, typer.Option("--model", metavar="FOLDER", help="A CLIP model of transformers, local.")],
    at_least: Annotated[float, typer.Option("--at-least", metavar="S", help="Clips that score less are left out.")],
    device: Annotated[str | None, typer.Option("--device", metavar="DEVICE", help="cpu, cuda, cuda:N or mps.")] = None,
) -> None:
    """Leave out clips whose captions do not fit their frames, by a model on this machine."""
    from pathlib import Path

    from vgen.engine.device import choose_device
    from vgen.training.data.footage.records import DataSet

    DataSet.open(data)
    starting(f"loading {model}")
    from vgen.training.data.footage.scorers import TextVideoSimilarity, refuse_low_scores

    scorer = TextVideoSimilarity(Path(model), choose_device(device or "auto"))
    refused = refuse_low_scores(Path(data), scorer, at_least, typer.echo)
    for entry in refused:
        typer.echo(f"refused {entry.id}: {entry.reason}")
    typer.echo(f"{counted(len(refused), 'clip')} left out from now on; a lower --at-least brings them back.")
