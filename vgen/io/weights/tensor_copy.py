"""Writing a safetensors file out of tensors that lie in other such files: bytes are copied, never interpreted."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vgen.io.weights.safetensors_header import TensorEntry, check_weights

_CHUNK = 1 << 24


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file.

    Attributes:
        file: where it lies.
        entry: its type, shape, and place among the tensors of that file.
        data_start: where in the file the tensors begin.
    """

    file: Path
    entry: TensorEntry
    data_start: int


def stored_tensors(files: Iterable[Path]) -> dict[str, StoredTensor]:
    """All tensors of some files by key; headers are checked.

    Raises:
        CheckpointError: a file is not sound, see `vgen.io.weights.safetensors_header.check_weights`.
    """
    found = {}
    for file in files:
        entries = check_weights(file)
        start = data_start(file)
        found.update({key: StoredTensor(file, entry, start) for key, entry in entries.items()})
    return found


def data_start(file: Path) -> int:
    """Where the tensors of a safetensors file begin."""
    with file.open("rb") as stream:
        return 8 + int.from_bytes(stream.read(8), "little")


def copy_tensors(path: Path, tensors: Mapping[str, StoredTensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file; takes no more memory than a chunk of 16 MiB.

    Wide types come first and keys in order, so that every tensor is aligned and equal content gives equal files.

    Args:
        path: to be written.
        tensors: by the key they will have.
        metadata: of the file.
    """
    order = sorted(tensors, key=lambda key: (-_bytes_each(tensors[key].entry), key))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for key in order:
        entry = tensors[key].entry
        length = entry.end - entry.start
        header[key] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [position, position + length]}
        position += length
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for key in order:
            for chunk in _chunks(tensors[key]):
                stream.write(chunk)


def _bytes_each(entry: TensorEntry) -> int:
    digits = "".join(c for c in entry.dtype.partition("_")[0] if c.isdigit())
    return int(digits or 8) // 8


def _chunks(tensor: StoredTensor) -> Iterable[bytes]:
    with tensor.file.open("rb") as stream:
        stream.seek(tensor.data_start + tensor.entry.start)
        left = tensor.entry.end - tensor.entry.start
        while left:
            chunk = stream.read(min(left, _CHUNK))
            if not chunk:
                raise OSError(f"{tensor.file} ended early")
            left -= len(chunk)
            yield chunk
