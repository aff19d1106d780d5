"""Reuse of freed memory on the CPU, where the C library by default gives every large block back at once."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4  # parameters of glibc's mallopt
_NEVER: Final = 2**31 - 1
_PAD: Final = 64 << 20
_DEFAULTS: Final = {
    _MMAP_MAX: 65536,
    _TOP_PAD: 128 << 10,
    _MMAP_THRESHOLD: 32 << 20,
    _TRIM_THRESHOLD: 64 << 20,
}
"""glibc's own; the two thresholds are where it raises them to by itself once blocks of that size have been freed."""

_lock = threading.Lock()
_users = 0
_for_good = False


def keep_freed_memory() -> bool:
    """Let the C library keep freed blocks for the next request instead of returning them to the system.

    Tensors of some megabytes are otherwise mapped afresh each time, and the system clears every page of them: half the
    time of coding small clips on a CPU. The process then holds on to the most that it ever used.

    Returns:
        Whether this system's C library can do so (glibc only; elsewhere nothing happens).
    """
    global _for_good
    mallopt = _mallopt()
    if mallopt is None:
        return False
    _for_good = True
    return _keep(mallopt)


@contextmanager
def memory_kept() -> Iterator[None]:
    """Inside, freed memory is kept for the next request; on leaving it goes back to the system.

    Does nothing where the C library is not glibc, or where `keep_freed_memory` has settled it.
    """
    global _users
    mallopt = _mallopt()
    if mallopt is None or _for_good:
        yield
        return
    with _lock:
        _users += 1
        if _users == 1:
            _keep(mallopt)
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users and not _for_good:
                for parameter, value in _DEFAULTS.items():
                    mallopt(parameter, value)
                ctypes.CDLL(None).malloc_trim(0)


def _mallopt() -> Any:
    return getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform.startswith("linux") else None


def _keep(mallopt: Any) -> bool:
    return all([mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, _NEVER), mallopt(_TOP_PAD, _PAD)])
