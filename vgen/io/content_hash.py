"""The one content hash: SHA-256 over whole files, each read once while it stays as it is.

What was hashed is remembered in the user's cache folder, a JSON object per line, by path, inode, size and both times
in nanoseconds. Lines are only appended, so that processes do not disturb one another; a line that cannot be read
counts for nothing. A file that was written a moment ago is not remembered: it could change again without a new time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path

from vgen.errors import OutputError, bytes_text
from vgen.io.files import cache_home, part_of
from vgen.io.walk import walk_files

logger = logging.getLogger(__name__)

REMEMBERED_FROM = 1 << 20
"""Bytes from which on a hash is remembered; smaller files are read as quickly as looked up."""

MAX_ENTRIES = 1 << 14
"""Files that are remembered at least; beyond twice as many lines, the oldest are dropped."""

_SAID_FROM = 4 << 30  # bytes, which take several seconds
_SETTLED = 2_000_000_000  # nanoseconds since the last change: the coarsest clock of a file system

_remembered: dict[Path, dict[str, tuple[list[int], str]]] = {}  # by store; read once per process


def read_hash(path: Path) -> str:
    """SHA-256 of a file's bytes as they are on the disk now, in hexadecimal.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def content_hash(path: Path) -> str:
    """As `read_hash`, but a file that has not changed since is not read again."""
    return content_hashes([path])[0]


def tree_hash(path: Path) -> str:
    """The `content_hash` of a file; of a folder one over all names and contents below it."""
    if not path.is_dir():
        return content_hash(path)
    found = walk_files(path)
    named = [[str(file.relative_to(path)), digest] for file, digest in zip(found, content_hashes(found), strict=True)]
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()


def content_hashes(paths: Sequence[Path]) -> list[str]:
    """`content_hash` of several files; says first if reading them takes seconds."""
    store = cache_home() / "hashes.jsonl"
    known = _read_store(store)
    new = [path for path in paths if _lookup(path, known) is None]
    total = sum(path.stat().st_size for path in new)
    if total >= _SAID_FROM:
        logger.warning("Reading %s once, to name what is computed from %s by its content.", bytes_text(total), new[0])
    return [_lookup(path, known) or _hash_and_remember(path, store, known) for path in paths]


def _state(status: os.stat_result) -> list[int]:
    return [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _lookup(path: Path, known: dict[str, tuple[list[int], str]]) -> str | None:
    state, digest = known.get(os.path.realpath(path), (None, None))
    return digest if state is not None and state == _state(path.stat()) else None


def _hash_and_remember(path: Path, store: Path, known: dict[str, tuple[list[int], str]]) -> str:
    started = time.time_ns()
    with path.open("rb") as stream:
        before = os.fstat(stream.fileno())
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        unchanged = _state(os.fstat(stream.fileno())) == _state(before)
    settled = started - max(before.st_mtime_ns, before.st_ctime_ns) >= _SETTLED
    if before.st_size >= REMEMBERED_FROM and unchanged and settled:
        known[os.path.realpath(path)] = (_state(before), digest)
        line = json.dumps([os.path.realpath(path), _state(before), digest])
        with contextlib.suppress(OSError):
            store.parent.mkdir(parents=True, exist_ok=True)
            with store.open("ab", buffering=0) as stream:
                stream.write(f"\n{line}\n".encode())  # in one call, and never joined to the rest of a line cut off
    return digest


def _read_store(store: Path) -> dict[str, tuple[list[int], str]]:
    if store in _remembered:
        return _remembered[store]
    known = _remembered.setdefault(store, {})
    try:
        lines = [line for line in store.read_bytes().split(b"\n") if line]
    except OSError:
        return known
    for line in lines:
        with contextlib.suppress(ValueError, TypeError, RecursionError):
            path, state, digest = json.loads(line)
            if isinstance(path, str) and isinstance(state, list) and isinstance(digest, str) and len(digest) == 64:
                known.pop(path, None)
                known[path] = (state, digest)
    if len(lines) > 2 * MAX_ENTRIES:
        newest = list(known.items())[-MAX_ENTRIES:]
        with contextlib.suppress(OutputError), part_of(store, overwrite=True) as part:
            part.write_text("".join(f"{json.dumps([path, *entry])}\n" for path, entry in newest), encoding="ascii")
    return known
