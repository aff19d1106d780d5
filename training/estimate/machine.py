"""How long counted work will take: the machine is timed for a fraction of a second on the heaviest of each kind.

seconds = sum over kinds of operations (flops / rate of the kind) + bytes of everything else / bandwidth
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from vgen.engine.device import synchronize
from vgen.training.cost.work import Operation, Work, WorkCounter

_PROBE_ROWS = 4096
_PROBE_SECONDS = 0.04
_PROBE_RUNS = 3
_LARGEST_PROBE = 3e8
"""Operations: of a larger one, fewer rows are timed."""
_SMALLEST_PROBE = 1e5
"""Operations of this size and fewer are not timed: they do not matter."""


_rates: dict[tuple[Any, ...], dict[Any, float]] = {}


class Machine:
    """Rates of a device, each measured when it is first asked for in this process.

    Args:
        device: that will work.
        bfloat16: whether it computes in bfloat16.
        clock: what seconds are read from.
    """

    def __init__(
        self, device: torch.device, bfloat16: bool = False, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.device = device
        self.dtype = torch.bfloat16 if bfloat16 else torch.float32
        self.clock = clock
        self._rates = _rates.setdefault((str(device), bfloat16, torch.get_num_threads(), clock), {})

    def seconds(self, work: Work) -> float:
        """What `work` takes."""
        computing = sum(flops / self._rate(work.heaviest[name]) for name, flops in work.flops.items() if flops)
        return computing + self.moving(work.traffic)

    def moving(self, traffic: float) -> float:
        """Seconds to read and write that many bytes, as fast as a softmax does, between a copy and an activation."""
        if "bandwidth" not in self._rates:
            source = torch.ones(_PROBE_ROWS, 1024, device=self.device)
            self._rates["bandwidth"] = 2 * source.nbytes / self._timed(lambda: source.softmax(-1))
        return traffic / self._rates["bandwidth"]

    def _rate(self, operation: Operation) -> float:
        """Operations per second."""
        if operation.flops < _SMALLEST_PROBE:
            return float("inf")
        probe = _cut(operation)
        key = (probe.name, *_shapes(probe))
        if key not in self._rates:
            arguments, keywords = tree_map(self._filled, (probe.arguments, probe.keywords))
            self._rates[key] = probe.flops / self._timed(lambda: probe.function(*arguments, **keywords))
        return self._rates[key]

    def _filled(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        dtype = self.dtype if value.dtype.is_floating_point else value.dtype
        return torch.ones(value.shape, dtype=dtype, device=self.device)

    def _timed(self, work: Callable[[], Any]) -> float:
        """Seconds of the fastest of a few runs, after one to warm up."""
        best = float("inf")
        with torch.no_grad():
            work()
            synchronize(self.device)
            until, runs = self.clock() + _PROBE_SECONDS, 0
            while runs < _PROBE_RUNS or self.clock() < until:
                runs += 1
                began = self.clock()
                work()
                synchronize(self.device)
                best = min(best, max(self.clock() - began, 1e-9))
        return best


def _cut(operation: Operation) -> Operation:
    """The same operation on fewer rows where it is a large one."""
    share, arguments = _LARGEST_PROBE / operation.flops, list(operation.arguments)
    if share >= 1:
        return operation
    name = operation.name.rpartition(".")[-1]
    if name in ("mm", "addmm"):
        left, right = arguments[-2:]
        if left.shape[0] >= left.shape[1]:
            arguments[-2] = _shorter(left, 0, share)
        else:
            arguments[-2:] = _shorter(left, 1, share), _shorter(right, 0, share)
    else:  # a convolution's weight has no rows of the batch
        batched = {"convolution": 1, "convolution_backward": 2}.get(name, len(arguments))
        arguments[:batched] = [_shorter(value, 0, share) for value in arguments[:batched]]
    try:
        with WorkCounter() as counted:
            operation.function(*arguments, **operation.keywords)
    except RuntimeError:  # a form of call that is not known here
        return operation
    return counted.work.heaviest.get(operation.name, operation)


def _shorter(value: Any, axis: int, share: float) -> Any:
    if not isinstance(value, Tensor) or value.ndim < 2:
        return value
    shape = list(value.shape)
    shape[axis] = max(1, round(shape[axis] * share))
    return torch.empty(shape, dtype=value.dtype, device="meta")


def _shapes(operation: Operation) -> tuple[Any, ...]:
    leaves = tree_leaves((operation.arguments, operation.keywords))
    return tuple(tuple(leaf.shape) if isinstance(leaf, Tensor) else str(leaf) for leaf in leaves)
