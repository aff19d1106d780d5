"""The device that models work on: which one, in which dtype, what is free on it, and how long work takes there."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch

from vgen.errors import RequestError

DTYPES: Final[Mapping[str, torch.dtype]] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""By the name that requests, recipes and scenarios have for them."""
CLOCKS: Final[Mapping[str, Callable[[], float]]] = {"wall": time.perf_counter, "process": time.process_time}
"""What can be read: the time that passes, or what this process takes of the processors (fair on a busy machine)."""
_X86: Final = ("x86_64", "amd64")
_PROBE_SIDES: Final = {"cuda": 8192}
_PROBE_SIDE: Final = 1536
"""Of the matrices that a device's rate is taken from, as small as keeps it busy."""
_PROBE_SECONDS: Final = 0.2


def choose_device(asked: str) -> str:
    """The device to run on: a GPU if there is one for "auto", else what was asked for.

    Raises:
        RequestError: it is not on this machine.
    """
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if asked.startswith("cuda"):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        number = int(asked.partition(":")[2] or 0)
        if number >= count:
            have = f"cuda:0 to cuda:{count - 1} are there" if count else "there is no CUDA device; use cpu"
            raise RequestError(f"device={asked!r} is not on this machine: {have}.")
    if asked == "mps" and not torch.backends.mps.is_available():
        raise RequestError("device='mps' is not on this machine; use cpu.")
    return asked


def lacks(*instructions: str) -> bool:
    """Whether this is an x86 processor that is known to have none of some instruction sets.

    Args:
        instructions: names as in `torch.cpu.get_capabilities()`, for instance avx512_vnni.
    """
    read: Any = getattr(torch.cpu, "get_capabilities", dict)  # older versions of torch cannot say
    capabilities = read()
    is_x86 = str(capabilities.get("architecture", "")).lower() in _X86
    return is_x86 and not any(capabilities.get(name) for name in instructions)


def free_bytes(device: torch.device) -> int:
    """Memory that is free now on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(psutil.virtual_memory().available)


def release_memory() -> None:
    """Give back what nothing refers to any more, on the host and to the GPU's other users."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def synchronize(device: torch.device) -> None:
    """Wait until a device has done what was started on it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], Any], device: torch.device, clock: str = "wall") -> float:
    """How long one run takes, what it has started on the device included; `clock`: of CLOCKS, of a CPU's work."""
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize(device)
        return begin.elapsed_time(end) / 1e3
    read = CLOCKS[clock]
    started = read()
    work()
    return read() - started


def peak_flops(device: torch.device, dtype: torch.dtype, clock: str = "wall") -> float:
    """FLOP/s of a large square matrix product, the best of some runs: the most that the device gives, measured now."""
    side = _PROBE_SIDES.get(device.type, _PROBE_SIDE)
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    times = [seconds(lambda: torch.mm(left, right, out=out), device, clock)]
    while len(times) < 3 or sum(times) < _PROBE_SECONDS:
        times.append(seconds(lambda: torch.mm(left, right, out=out), device, clock))
    return 2 * side**3 / min(times)
