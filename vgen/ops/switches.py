"""The parts of the fast path, each of which can be turned off. None of them changes a result beyond rounding.

The environment variable VGEN_WITHOUT turns parts off from the start: a list of names, or "all".
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from vgen.errors import RequestError

PARTS: Final[dict[str, str]] = {
    "hoisting": "computed once for all steps: rotary tables, modulation by timestep, text, its keys and values",
    "trimmed_text": "padding is cut off the text, and no mask is applied where none is left",
    "fused_qkv": "queries, keys and values of self-attention in one matrix product",
    "epilogue": "GELU inside the matrix product",
    "kept_memory": "freed memory is used again instead of returned to the system and cleared (CPU, glibc)",
    "direct_convolution": "every convolution by blocked kernels, also of small inputs; 1x1x1 as a matrix product (CPU)",
    "native": "fused norms with modulation, rotation or SiLU, compiled once by the system's C compiler (CPU)",
    "triton": "the same in Triton (NVIDIA GPU)",
    "autotune": "attention, and compiled blocks or not, by what was measured to be faster here",
    "cuda_graph": "small clips: the blocks recorded once and played back (NVIDIA GPU)",
}
"""Every part by name, and what it does."""


def _known(names: tuple[str, ...], source: str) -> frozenset[str]:
    if names == ("all",):
        return frozenset(PARTS)
    for name in names:
        if name not in PARTS:
            raise RequestError(f"{source}: {name!r} is not a part of the fast path: use {', '.join(PARTS)}, or all.")
    return frozenset(names)


def _from_environment() -> frozenset[str]:
    words = os.environ.get("VGEN_WITHOUT", "").replace(",", " ").split()
    return _known(tuple(words), "VGEN_WITHOUT")


_off: frozenset[str] | None = None


def enabled(name: str) -> bool:
    """Whether a part is on."""
    global _off
    if _off is None:
        _off = _from_environment()
    return name not in _off


@contextmanager
def without(*names: str) -> Iterator[None]:
    """Inside, the named parts ("all": every one) are off, for the whole process.

    Raises:
        RequestError: there is no such part.
    """
    global _off
    enabled("")
    before = _off
    _off = (before or frozenset()) | _known(names, "without")
    try:
        yield
    finally:
        _off = before
