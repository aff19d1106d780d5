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

    found = probe(file)
    if found.metadata is None and as_json:
        raise MediaError(f"{file} is a {found.container} of {found.width} x {found.height} that holds no vgen request.")
    if as_json:
        typer.echo(json.dumps(found.metadata, indent=1))
        return
    frames = f"{counted(found.num_frames, 'frame')} of " if found.num_frames else ""
    rate = f" at {found.frame_rate:.5g} fps" if found.frame_rate else ""
    typer.echo(f"{file}: {found.container} ({found.codec}), {frames}{found.width} x {found.height}{rate}")
    more = [what for what, there in (("alpha", found.has_alpha), ("sound", found.has_sound)) if there]
    typer.echo(", ".join([f"colours: {found.colours}", *more]))
    if found.metadata is None:
        typer.echo("It holds no vgen request.")
        return
    width = max(len(key) for key in found.metadata) if found.metadata else 0
    for key, value in found.metadata.items():
        shown = value if isinstance(value, (int, float)) else json.dumps(value, ensure_ascii=False)
        typer.echo(f"  {key:<{width}}  {shown}")
