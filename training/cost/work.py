"""What a forward and a backward do, counted on shapes alone: operations of each kind, and memory traffic."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from vgen.training.cost.rehearsal import Inputs, Loss, run_on_meta

_aten = torch.ops.aten


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _attention_backward_flops(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(grad, query, key, value))


_CPU_ATTENTION = {
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}
"""torch's own registry does not know them."""


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

    @property
    def total_flops(self) -> int:
        """Floating-point operations of all kinds."""
        return sum(self.flops.values())

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
        counting: Any = _CPU_ATTENTION.get(func._overloadpacket) or flop_registry.get(func._overloadpacket)
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


def count_work(module: nn.Module, loss: Loss, inputs: Inputs) -> Work:
    """What a micro-batch does, forward and backward; what gradient checkpointing repeats counts.

    Args:
        module: holds the weights.
        loss: makes a scalar of `inputs`, through `module`; must not look at values.
        inputs: only their shapes and dtypes matter.
    """
    with WorkCounter() as counter:
        run_on_meta(module, loss, inputs)
    return counter.work
