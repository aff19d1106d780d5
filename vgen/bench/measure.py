"""Timing that can be believed: interleaved runs, paired ratios, peaks measured in the same run."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from math import comb
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from vgen.engine.device import seconds

Work = Callable[[], Any]


class Ratio(NamedTuple):
    """The median of paired ratios, an interval of order statistics around it, and how surely that holds the median."""

    median: float
    low: float
    high: float
    confidence: float


def interleaved(
    works: Mapping[str, Work], rounds: int, device: torch.device, clock: str = "wall"
) -> dict[str, list[float]]:
    """Run all in turn, forwards and then backwards (A B B A), so that a slow drift of the machine hits them equally.

    Args:
        works: by name; warmed up already.
        rounds: of two runs each.
        device: what they run on.
        clock: see `vgen.engine.device.seconds`.
    Returns:
        Seconds by name, two a round, in order.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name in (*works, *reversed(list(works))):
            times[name].append(seconds(works[name], device, clock))
    return times


def rounds_within(rounds: int, once: float, left: float) -> int:
    """How many of `rounds` fit in `left` seconds, at least one; running everything once takes `once` seconds."""
    return max(1, min(rounds, int(left / max(2 * once, 1e-9))))


@contextmanager
def full_float32() -> Iterator[None]:
    """Inside, float32 on an NVIDIA GPU is float32: torch otherwise lets convolutions round their inputs to 10 bits."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def paired_ratio(times: Sequence[float], peer: Sequence[float]) -> Ratio:
    """How many times as long the peer takes: one ratio a round (two runs of each), and their median.

    Args:
        times, peer: seconds of `interleaved`, two a round.
    Returns:
        Above 1, the peer is slower. The interval has at least 95 % confidence where there are six rounds or more;
        with fewer it is the whole range, at the confidence given.
    """

    def by_round(values: Sequence[float]) -> list[float]:
        return [first + second for first, second in zip(values[::2], values[1::2], strict=True)]

    ratios = sorted(b / a for a, b in zip(by_round(times), by_round(peer), strict=True))
    count = len(ratios)

    def confidence(cut: int) -> float:
        return 1 - 2 * sum(comb(count, below) for below in range(cut + 1)) / 2**count

    cut = max((cut for cut in range((count + 1) // 2) if confidence(cut) >= 0.95), default=0)
    return Ratio(quantile(ratios, 0.5), ratios[cut], ratios[count - 1 - cut], max(confidence(cut), 0.0))


def quantile(values: Sequence[float], share: float) -> float:
    """The value that `share` of all are below, interpolated."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def memory_peaks(work: Work, device: torch.device) -> tuple[int | None, int]:
    """The most memory taken during a run, of the GPU or of this process, and what of it was allocated for the run.

    On a GPU one run tells both, elsewhere each takes a run of its own; see `process_peak` and `allocated_peak`.
    """
    if device.type != "cuda":
        return process_peak(work), allocated_peak(work)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    work()
    peak = int(torch.cuda.max_memory_allocated(device))
    return peak, peak - before


def process_peak(work: Work) -> int | None:
    """The most memory taken by this process during one run; None where it is not known."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        work()
        return next(
            int(line.split()[1]) * 1024
            for line in Path("/proc/self/status").read_text().splitlines()
            if line.startswith("VmHWM:")
        )
    except OSError:
        return None


def allocated_peak(work: Work) -> int:
    """Most bytes that one run on a CPU holds at the same time above what is there before it, by torch's own allocator.

    What `torch.cuda.max_memory_allocated` counts on a GPU: tensors, and the workspaces that operations ask torch
    for (convolutions copy their input and output into a layout of their own). The kernels are those of any other run.
    Interpreter, libraries and memory that the C library keeps for later do not count.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it would say on stderr that it starts and stops
    gc.collect()  # cycles of earlier runs must not be freed within this one
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    changes = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    return max(accumulate((event.nbytes() for event in changes), initial=0))


class _AttentionOps(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "attention" in func.name() or "fmha" in func.name() or "flash" in func.name():
            self.names.add(func.name())
        return func(*args, **(kwargs or {}))


def attention_used(work: Work) -> list[str]:
    """The attention operations that really ran, by the names they have in torch."""
    with _AttentionOps() as seen:
        work()
    return sorted(seen.names)
