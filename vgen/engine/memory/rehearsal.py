"""How much memory work takes, by a rehearsal: the same code on tensors that have sizes but no content.

What is alive at the same time is counted. Nothing is estimated from formulas that could go stale.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Counted(NamedTuple):
    """A storage that `LiveBytes` waits for: its reference, key and bytes."""

    reference: weakref.ref[torch.UntypedStorage]
    key: int
    size: int


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors made inside it that are alive at the same time.

    Attributes:
        peak: the most there were.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._alive = 0
        self._seen: set[int] = set()
        self._waiting: dict[int, _Counted] = {}
        self._gone: list[weakref.ref[torch.UntypedStorage]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count what it made."""
        result = func(*args, **(kwargs or {}))
        self._forget_gone()  # before the result is looked at: it may have the address of something that is gone
        leaves = (result,) if isinstance(result, Tensor) else tree_leaves(result)
        for leaf in leaves:
            if isinstance(leaf, Tensor):
                self._take_in(leaf.untyped_storage())
        self.peak = max(self.peak, self._alive)
        return result

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        self._forget_gone()

    def _take_in(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._seen:
            size = storage.nbytes()
            self._seen.add(key)
            self._alive += size
            # The callback must not be Python code: an interrupt that comes in one is lost, and the work goes on.
            reference = weakref.ref(storage, self._gone.append)
            self._waiting[id(reference)] = _Counted(reference, key, size)

    def _forget_gone(self) -> None:
        while self._gone:
            counted = self._waiting.pop(id(self._gone.pop()))
            self._seen.discard(counted.key)
            self._alive -= counted.size

    def overlook(self, *known: nn.Module | Tensor) -> None:
        """Leave out weights of models, and tensors, that were there before; otherwise a view of one counts as new."""
        for one in known:
            tensors = (one,) if isinstance(one, Tensor) else (*one.parameters(), *one.buffers())
            self._seen.update(tensor.untyped_storage()._cdata for tensor in tensors)

    def now(self) -> int:
        """Bytes that are alive now."""
        self._forget_gone()
        return self._alive


class _FusedAttention(TorchFunctionMode):
    """Attention as the kernels in use do it: without ever holding its scores."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            query = args[0] if args else kwargs["query"]
            value = args[2] if len(args) > 2 else kwargs["value"]
            return query.new_empty(*query.shape[:-1], value.shape[-1])
        return func(*args, **(kwargs or {}))


def rehearse(run: Callable[[], Any], *known: nn.Module | Tensor) -> int:
    """Most bytes alive in `run`, without gradients.

    Args:
        run: works on tensors of the meta device.
        known: models whose weights, and tensors that, do not count.
    """
    with torch.no_grad(), LiveBytes() as live, _FusedAttention():
        live.overlook(*known)
        run()
    return live.peak


def by_few_blocks(owner: nn.Module, name: str, peak: Callable[[], int]) -> int:
    """What `peak` gives, known from runs with two and three of a model's blocks.

    Blocks of one shape take the same memory one after another, and each keeps the same amount: what comes on top with
    the third is what every further one adds.

    Args:
        owner, name: where the blocks are.
        peak: rehearses the model.
    """
    blocks = getattr(owner, name)
    shapes = {tuple(tuple(weight.shape) for weight in block.parameters()) for block in list(blocks)[1:]}
    if len(blocks) <= 5 or len(shapes) > 1:
        return peak()
    try:
        setattr(owner, name, blocks[:2])
        two = peak()
        setattr(owner, name, blocks[:3])
        return two + (len(blocks) - 2) * (peak() - two)
    finally:
        setattr(owner, name, blocks)
