"""Reuse of freed memory on the CPU, where the C library by default gives every large block back at once."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Final, NamedTuple

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


class Heap(NamedTuple):
    """What the C library holds of the system's memory, in bytes.

    Attributes:
        size: all of it.
        used: blocks that are in use.
        top: free at its end, where nothing may have been written yet.
    """

    size: int
    used: int
    top: int


class _Mallinfo(ctypes.Structure):
    _fields_: ClassVar = [
        ("arena", ctypes.c_size_t),
        ("ordblks", ctypes.c_size_t),
        ("smblks", ctypes.c_size_t),
        ("hblks", ctypes.c_size_t),
        ("hblkhd", ctypes.c_size_t),
        ("usmblks", ctypes.c_size_t),
        ("fsmblks", ctypes.c_size_t),
        ("uordblks", ctypes.c_size_t),
        ("fordblks", ctypes.c_size_t),
        ("keepcost", ctypes.c_size_t),
    ]


def heap() -> Heap | None:
    """The heap of this process as it is; None where the C library does not say (glibc 2.33 and newer do)."""
    ask = getattr(ctypes.CDLL(None), "mallinfo2", None) if sys.platform.startswith("linux") else None
    if ask is None:
        return None
    ask.restype = _Mallinfo
    told = ask()
    return Heap(told.arena + told.hblkhd, told.uordblks + told.hblkhd, told.keepcost)


def return_freed_memory() -> None:
    """Give the system back what is free in the heap, once; where the C library cannot, nothing happens."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is not None:
        trim(0)


class StandIns:
    """Blocks of the heap that nothing is ever written to, so that they take addresses and no memory.

    They lie where the C library puts tensors of the same sizes, between whatever else the process allocates, and leave
    the same holes: how much larger a heap gets than what it holds depends on little else. Aligned blocks leave many:
    glibc before 2.38 cannot give a freed one to a request of just its size.

    Attributes:
        peak: largest size of the heap so far, its untouched end left out.
    """

    _ALIGNMENT: Final = 64
    """That of torch's tensors."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(None)
        self._library.free.argtypes = [ctypes.c_void_p]
        self.peak = 0
        self.look()

    def take(self, size: int) -> int | None:
        """An address; None where the system has no more."""
        place = ctypes.c_void_p()
        failed = self._library.posix_memalign(
            ctypes.byref(place), ctypes.c_size_t(self._ALIGNMENT), ctypes.c_size_t(size)
        )
        return None if failed else place.value

    def drop(self, place: int | None) -> None:
        """Free what `take` gave."""
        if place is not None:
            self._library.free(place)

    def look(self) -> None:
        """Measure the heap's size."""
        found = heap()
        if found is not None:
            self.peak = max(self.peak, found.size - found.top)
