"""`vgen models`: the models that go by a name."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from vgen.errors import bytes_text


def models(
    as_json: Annotated[bool, typer.Option("--json", help="Print the table as JSON, with paths.")] = False,
) -> None:
    """List the models that --model knows by name, what they need, and which are on this machine."""
    rows = _rows()
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title, justify in (("name", "left"), ("transformer", "right"), ("file", "right"), ("memory", "right")):
        table.add_column(title, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    table.add_column("licence")
    table.add_column("here", no_wrap=True)
    for row in rows:
        sizes = [bytes_text(row[key]) for key in ("file_bytes", "memory_bytes")]
        here = "no" if row["path"] is None else "yes"
        table.add_row(row["name"], row["size"], *sizes, row["licence"] + (" *" if row["fp8"] else ""), here)
    Console(markup=False).print(table)
    typer.echo("memory: all weights in bfloat16, text encoder included; the clip itself comes on top.")
    typer.echo(
        "defaults of dev models: guidance alone (2B 3, 13B 5); --preset original takes the guidance of their makers, "
        "slower. Distilled models: as their makers made them."
    )
    typer.echo("*: FP8 weights for Lightricks' own kernels; their layout is not read here.")


def _rows() -> list[dict[str, Any]]:
    from vgen.errors import CheckpointError
    from vgen.hub.catalog import CATALOG
    from vgen.hub.find import EMBEDDED, find_entry, resolve_model

    rows: list[dict[str, Any]] = []
    for name in EMBEDDED:
        try:
            folder = resolve_model(name)
        except CheckpointError:
            folder = None
        files = [] if folder is None else [file for file in folder.rglob("*") if file.is_file()]
        size = sum(file.stat().st_size for file in files)
        rows.append(
            {"name": name, "version": "", "size": "", "file_bytes": size, "memory_bytes": size}
            | {"licence": "Apache-2.0", "fp8": False, "presets": [], "path": None if folder is None else str(folder)}
        )
    for entry in CATALOG.values():
        path = find_entry(entry)
        rows.append(
            {"name": entry.name, "version": entry.version, "size": entry.size.upper(), "file_bytes": entry.file_bytes}
            | {"memory_bytes": entry.memory_bytes, "licence": entry.licence, "fp8": entry.fp8}
            | {"presets": sorted(entry.defaults.get("presets", {})), "path": None if path is None else str(path)}
        )
    return rows
