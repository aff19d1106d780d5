"""Freed memory is kept for the next request, where the C library can do so."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import ctypes, resource, sys
from vgen.engine.memory.allocator import keep_freed_memory
if "keep" in sys.argv and not keep_freed_memory():
    sys.exit(77)
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
size = 64 << 20  # more than the C library keeps by itself
for _ in range(20):
    block = libc.malloc(size)
    ctypes.memset(block, 1, size)
    libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


def _page_faults(*arguments: str) -> int:
    run = subprocess.run([sys.executable, "-c", CODE, *arguments], capture_output=True, text=True, timeout=300)
    if run.returncode == 77:
        pytest.skip("this C library has no mallopt")
    assert run.returncode == 0, run.stderr
    return int(run.stdout)


def test_a_large_block_is_cleared_once_and_not_each_time() -> None:
    assert _page_faults("keep") < 0.3 * _page_faults()
