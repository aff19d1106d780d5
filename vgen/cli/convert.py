"""`vgen convert`: a model's folder to a single file, and back."""

from __future__ import annotations

from typing import Annotated

import typer

from vgen.cli.display import starting
from vgen.errors import bytes_text


def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A folder, a .safetensors file, or a model's name.")],
    target: Annotated[str, typer.Argument(metavar="DST", help="A .safetensors file, or a folder.")],
    text_encoder: Annotated[
        str | None,
        typer.Option(
            "--text-encoder", metavar="FOLDER", help="Puts its text_encoder/ and tokenizer/ into the new folder."
        ),
    ] = None,
    version: Annotated[
        str | None,
        typer.Option("--version", metavar="NAME", help="Which model a renamed file is, see `vgen models`."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there already.")] = False,
) -> None:
    """Convert LTX-Video between diffusers' folder and the original single file; no bit of a tensor changes."""
    from pathlib import Path

    from vgen.errors import RequestError
    from vgen.hub.catalog import entry_named
    from vgen.hub.convert import file_to_folder, folder_to_file
    from vgen.hub.find import find_text_encoder, resolve_model
    from vgen.io.files import exists_message

    entry = None if version is None else entry_named(version)
    source_path, path = resolve_model(source), Path(target).expanduser()
    to_file = source_path.is_dir()
    if to_file != (path.suffix == ".safetensors"):
        rule = "a folder becomes a file that ends in .safetensors" if to_file else "a file becomes a folder"
        raise RequestError(f"DST={target!r} does not fit SRC={source!r}: {rule}.")
    if to_file and (text_encoder or version):
        raise RequestError("--text-encoder and --version are for the way from a file to a folder.")
    if path.exists() and not overwrite:
        raise RequestError(exists_message(path))
    texts = None if text_encoder is None else find_text_encoder(source_path, text_encoder)
    starting(f"converting {source_path}")
    from vgen.models.empty import model_shapes

    if to_file:
        folder_to_file(source_path, path, model_shapes, overwrite=overwrite)
        note = "Text encoder and tokenizer have no place in it."
    else:
        file_to_folder(source_path, path, model_shapes, overwrite=overwrite, text_encoder=texts, entry=entry)
        note = "" if texts else "It has no text encoder (--text-encoder FOLDER): one from the hub's cache will be used."
    files = [path] if to_file else [file for file in path.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    typer.echo(f"{target}: {bytes_text(size)}. {note}".rstrip())
