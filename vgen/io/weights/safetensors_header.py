"""The header of a safetensors file, read and checked before anything of its size is allocated."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from vgen.errors import CheckpointError, counted

MAX_HEADER = 100_000_000
"""Most bytes of a header; the format's own limit."""

_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E5M2FNUZ": 8, "F8_E4M3FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "F64": 64, "I64": 64, "U64": 64,
    "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


class TensorEntry(NamedTuple):
    """One tensor of a header: its type, its shape, and where its bytes lie after the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def check_weights(file: Path) -> dict[str, TensorEntry]:
    """Read and check the header of a safetensors file.

    Args:
        file: the file.
    Returns:
        every tensor's entry by key.
    Raises:
        CheckpointError: not a safetensors file (a renamed pickle or archive, text), an absurd, broken or duplicate
            header, tensors that overlap or leave gaps, a length that does not fit the shape, or a truncated file.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            header_length = int.from_bytes(stream.read(8), "little")
            _check_start(file, size, header_length)
            header = stream.read(header_length)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}.") from None
    try:
        content = json.loads(header, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} has a broken header: {error}.") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} has a broken header: it is not a JSON object.")
    entries = {key: _entry(file, key, value) for key, value in content.items() if key != "__metadata__"}
    _check_layout(file, entries, size - 8 - header_length)
    return entries


def _check_start(file: Path, size: int, header_length: int) -> None:
    if size < 8:
        raise CheckpointError(f"{file} is {'empty' if size == 0 else 'truncated'} ({counted(size, 'byte')}).")
    if header_length <= min(size - 8, MAX_HEADER):
        return
    with file.open("rb") as stream:
        head = stream.read(8)
    if head.startswith(b"PK") or head[0] == 0x80:
        raise CheckpointError(f"{file} is a pickle or a PyTorch archive under another name; it is never loaded.")
    if header_length <= MAX_HEADER:
        raise CheckpointError(f"{file} is truncated: its header has {header_length:,} bytes, the file {size:,}.")
    raise CheckpointError(f"{file} is not a safetensors file: its header would have {header_length:,} bytes.")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} appears twice")
        found[key] = value
    return found


def _entry(file: Path, key: str, value: Any) -> TensorEntry:
    try:
        dtype, shape, (start, end) = value["dtype"], tuple(value["shape"]), value["data_offsets"]
        whole = all(type(n) is int and n >= 0 for n in (*shape, start, end))
    except (TypeError, KeyError, ValueError):
        raise CheckpointError(f"{file}: the header's entry for {key!r} is broken.") from None
    if not whole or end < start or not isinstance(dtype, str):
        raise CheckpointError(f"{file}: the header's entry for {key!r} has impossible numbers.")
    if dtype not in _BITS:
        raise CheckpointError(f"{file}: {key!r} has the unknown type {dtype!r}.")
    if math.prod(shape) * _BITS[dtype] != (end - start) * 8:
        raise CheckpointError(
            f"{file}: {key!r} is {dtype} {list(shape)}, but {end - start:,} bytes are set aside for it."
        )
    return TensorEntry(dtype, shape, start, end)


def _check_layout(file: Path, entries: dict[str, TensorEntry], data_bytes: int) -> None:
    position = 0
    for key, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != position:
            fault = "overlaps the tensor before it" if entry.start < position else "leaves a gap before it"
            raise CheckpointError(f"{file}: {key!r} {fault} (starts at {entry.start:,}, expected {position:,}).")
        position = entry.end
    if position != data_bytes:
        fault = "is truncated" if position > data_bytes else "has bytes that belong to no tensor"
        raise CheckpointError(
            f"{file} {fault}: its header counts {position:,} bytes of tensors, {data_bytes:,} are there."
        )
