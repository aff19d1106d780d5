"""Headers of weight files: checked before anything is allocated."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from vgen.errors import CheckpointError
from vgen.io.weights.safetensors_file import read_header


def _write(path: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def _entry(start: int, end: int, shape: list[int] | None = None, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape or [(end - start) // 4], "data_offsets": [start, end]}


def test_what_safetensors_writes_is_sound(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    tensors = {"b": np.zeros((2, 3), np.float32), "a": np.ones(5, np.float16), "empty": np.zeros((0, 4), np.int64)}
    save_file(tensors, path, metadata={"format": "pt"})
    found = read_header(path).entries
    assert {key: (entry.dtype, entry.shape) for key, entry in found.items()} == {
        "b": ("F32", (2, 3)),
        "a": ("F16", (5,)),
        "empty": ("I64", (0, 4)),
    }


@pytest.mark.parametrize(
    ("header", "data", "cause"),
    [
        ({"a": _entry(0, 8), "b": _entry(4, 12)}, bytes(12), "'b' overlaps the tensor before it"),
        ({"a": _entry(0, 4), "b": _entry(8, 12)}, bytes(12), "'b' leaves a gap"),
        ({"a": _entry(4, 8)}, bytes(8), "'a' leaves a gap"),
        ({"a": _entry(0, 8)}, bytes(4), "is truncated: its header counts 8 bytes of tensors, 4 are there"),
        ({"a": _entry(0, 4)}, bytes(9), "bytes that belong to no tensor"),
        ({"a": _entry(0, 8, [3])}, bytes(8), "'a' is F32 \\[3\\], but 8 bytes"),
        ({"a": _entry(0, 8, [2**62, 2**62])}, bytes(8), "'a' is F32"),
        ({"a": _entry(0, 8, [-2])}, bytes(8), "impossible numbers"),
        ({"a": _entry(8, 0, [2])}, bytes(8), "impossible numbers"),
        ({"a": _entry(0, 8, dtype="Q9")}, bytes(8), "unknown type 'Q9'"),
        ({"a": {"dtype": "F32"}}, b"", "entry for 'a' is broken"),
        ({"a": 3}, b"", "entry for 'a' is broken"),
        ([1, 2], b"", "not a JSON object"),
        (b"{broken", b"", "broken header"),
        (b"\xff\xfe", b"", "broken header"),
        (b'{"a": 1, "a": 2}', b"", "the key 'a' appears twice"),
        (b"[" * 100_000, b"", "broken header"),
    ],
)
def test_unsound_headers(tmp_path: Path, header: Any, data: bytes, cause: str) -> None:
    path = _write(tmp_path / "model.safetensors", header, data)
    with pytest.raises(CheckpointError, match=rf"model\.safetensors.*{cause}"):
        read_header(path)


def test_other_files_under_the_name(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as stream:
        stream.writestr("archive/data.pkl", b"x" * 100)
    for content, cause in {
        b"": "is empty",
        b"abc": r"is truncated \(3 bytes\)",
        pickle.dumps({"a": 1}, protocol=4): "pickle",
        archive.getvalue(): "pickle or a PyTorch archive",
        b"version https://git-lfs.github.com/spec/v1\n": "not a safetensors file",
        (5000).to_bytes(8, "little") + b"{}": "is truncated",
        (2**63).to_bytes(8, "little") + b"{}": "header would have",
    }.items():
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=cause):
            read_header(path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_header(tmp_path / "missing.safetensors")
