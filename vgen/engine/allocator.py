"""Reuse of freed memory on the CPU, where the C library by default gives every large block back at once."""

from __future__ import annotations

import ctypes
import sys
from typing import Final

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # parameters of glibc's mallopt
_NEVER: Final = 2**31 - 1
_PAD: Final = 64 << 20


def keep_freed_memory() -> bool:
    """Let the C library keep freed blocks for the next request instead of returning them to the system.

    Tensors of some megabytes are otherwise mapped afresh each time, and the system clears every page of them: half the
    time of coding small clips on a CPU. The process then holds on to the most that it ever used.

    Returns:
        Whether this system's C library could be told so (glibc only; elsewhere nothing happens).
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    told = [mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, _NEVER), mallopt(_TOP_PAD, _PAD)]
    return all(told)
