"""`vgen info`: the request stored in an output."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from vgen.errors import counted


def info(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A clip; one that vgen wrote holds its request.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the request as JSON.")] = False,
) -> None:
    """Print what a clip is, and the request that made it: prompt, seed, every parameter, model, versions."""
    from vgen.errors import MediaError
    from vgen.io.media.video import probe

    clip = probe(file)
    if clip.metadata is None and as_json:
        raise MediaError(f"{file} is a {clip.container} of {clip.width} x {clip.height} that holds no vgen request.")
    if as_json:
        typer.echo(json.dumps(clip.metadata, indent=1))
        return
    frames = f"{counted(clip.num_frames, 'frame')} of " if clip.num_frames else ""
    rate = f" at {clip.frame_rate:.5g} fps" if clip.frame_rate else ""
    typer.echo(f"{file}: {clip.container} ({clip.codec}), {frames}{clip.width} x {clip.height}{rate}")
    more = [what for what, there in (("alpha", clip.has_alpha), ("sound", clip.has_sound)) if there]
    typer.echo(", ".join([f"colours: {clip.colours}", *more]))
    if clip.metadata is None:
        typer.echo("It holds no vgen request.")
        return
    width = max(len(key) for key in clip.metadata) if clip.metadata else 0
    for key, value in clip.metadata.items():
        shown = value if isinstance(value, (int, float)) else json.dumps(value, ensure_ascii=False)
        typer.echo(f"  {key:<{width}}  {shown}")
