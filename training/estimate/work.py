"""How long work will take: operations and memory traffic are counted on shapes alone, and the machine is timed for a
fraction of a second on the heaviest operation of each kind.

    seconds = sum over kinds of operations (flops / rate of the kind) + bytes of everything else / bandwidth
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry

from vgen.engine.device import synchronize
from vgen.training.cost.rehearsal import CPU_ATTENTION

_PROBE_ROWS = 4096
_PROBE_SECONDS = 0.04
_PROBE_RUNS = 3
_LARGEST_PROBE = 3e8
"""Operations: of a larger one, fewer rows are timed."""
_SMALLEST_PROBE = 1e5
"""Operations of this size and fewer are not timed: they do not matter."""


class Operation(NamedTuple):
    """An operation and what it is called with; tensors are on the meta device."""

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    flops: int


@dataclass
class Work:
    """What a forward and a backward do.

    Attributes:
        flops: of each kind of operation that has any.
        heaviest: of each kind, the operation with the most.
        traffic: bytes that all other operations read and write.
    """

    flops: dict[str, int] = field(default_factory=dict)
    heaviest: dict[str, Operation] = field(default_factory=dict)
    traffic: int = 0

    def times(self, factor: float) -> Work:
        """The same `factor` times."""
        flops = {name: int(count * factor) for name, count in self.flops.items()}
        return Work(flops, self.heaviest, int(self.traffic * factor))


class WorkCounter(TorchDispatchMode):
    """Counts what is done inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.work = Work()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count it."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        counting: Any = CPU_ATTENTION.get(func._overloadpacket) or flop_registry.get(func._overloadpacket)
        if counting is not None:
            count = int(counting(*args, **kwargs, out_val=result))
            name = str(func._overloadpacket)
            self.work.flops[name] = self.work.flops.get(name, 0) + count
            if name not in self.work.heaviest or count > self.work.heaviest[name].flops:
                arguments, keywords = tree_map(_shape_of, (args, kwargs))
                self.work.heaviest[name] = Operation(name, func, arguments, keywords, count)
        elif not func.is_view:
            tensors = {id(leaf): leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)}
            self.work.traffic += sum(_touched(tensor) for tensor in tensors.values())
        return result


def _shape_of(value: Any) -> Any:
    return torch.empty(value.shape, dtype=value.dtype, device="meta") if isinstance(value, Tensor) else value


def _touched(tensor: Tensor) -> int:
    """Bytes of a tensor, what is broadcast counted once."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return math.prod(size for size, stride in sizes if stride != 0) * tensor.element_size()


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
