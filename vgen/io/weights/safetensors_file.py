"""Safetensors files: headers checked before anything of their size is allocated, and tensors copied as bytes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
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
_CHUNK = 1 << 24  # bytes that are copied at once


class TensorEntry(NamedTuple):
    """One tensor of a file: its type, its shape, and where its bytes are.

    Attributes:
        dtype: safetensors' name of it, e.g. "BF16".
        shape: of the tensor.
        start, end: of its bytes, counted from the end of the header.
        file: that holds it.
        offset: of the end of the header in that file.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int
    file: Path
    offset: int

    @property
    def num_bytes(self) -> int:
        """Size of the tensor."""
        return self.end - self.start


class Header(NamedTuple):
    """What a header says: every tensor by key, and the metadata."""

    entries: dict[str, TensorEntry]
    metadata: dict[str, str]


def read_header(file: Path) -> Header:
    """Read and check the header of a safetensors file.

    Raises:
        CheckpointError: not a safetensors file (a renamed pickle or archive, text), an absurd, broken or duplicate
            header, tensors that overlap or leave gaps, a length that does not fit the shape, metadata that is not text,
            or a truncated file.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            _check_start(file, size, length)
            text = stream.read(length)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}.") from None
    try:
        content = json.loads(text, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} has a broken header: {error}.") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} has a broken header: it is not a JSON object.")
    metadata = content.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{file} has metadata that is not text.")
    entries = {key: _entry(file, key, value, 8 + length) for key, value in content.items()}
    _check_layout(file, entries, size - 8 - length)
    return Header(entries, metadata)


def read_entries(files: Iterable[Path]) -> dict[str, TensorEntry]:
    """The tensors of several files, by key; see `read_header`."""
    return {key: entry for file in files for key, entry in read_header(file).entries.items()}


def _check_start(file: Path, size: int, length: int) -> None:
    """Refuse a file whose first bytes do not announce a header of `length` bytes."""
    if size < 8:
        raise CheckpointError(f"{file} is {'empty' if size == 0 else 'truncated'} ({counted(size, 'byte')}).")
    if length <= min(size - 8, MAX_HEADER):
        return
    with file.open("rb") as stream:
        head = stream.read(8)
    if head.startswith(b"PK") or head[0] == 0x80:
        raise CheckpointError(f"{file} is a pickle or a PyTorch archive under another name; it is never loaded.")
    if length <= MAX_HEADER:
        raise CheckpointError(f"{file} is truncated: its header has {length:,} bytes, the file {size:,}.")
    raise CheckpointError(f"{file} is not a safetensors file: its header would have {length:,} bytes.")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise ValueError(f"the key {key!r} appears twice")
        content[key] = value
    return content


def _entry(file: Path, key: str, value: Any, offset: int) -> TensorEntry:
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
    return TensorEntry(dtype, shape, start, end, file, offset)


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


def copy_tensors(path: Path, tensors: Mapping[str, TensorEntry], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file out of tensors of others, whose bytes are copied and never interpreted.

    Wide types come first and keys in order, so that every tensor is aligned and equal content gives equal files. It
    takes no more memory than a chunk of 16 MiB.

    Args:
        path: to be written.
        tensors: by the key that they get.
        metadata: of the file.
    """
    order = sorted(tensors, key=lambda key: (-_BITS[tensors[key].dtype], key))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for key in order:
        entry, end = tensors[key], position + tensors[key].num_bytes
        header[key] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for key in order:
            for chunk in _chunks(tensors[key]):
                stream.write(chunk)


def _chunks(tensor: TensorEntry) -> Iterable[bytes]:
    with tensor.file.open("rb") as stream:
        stream.seek(tensor.offset + tensor.start)
        left = tensor.num_bytes
        while left:
            chunk = stream.read(min(left, _CHUNK))
            if not chunk:
                raise OSError(f"{tensor.file} ended early")
            left -= len(chunk)
            yield chunk
