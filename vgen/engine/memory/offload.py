"""Block offload: the blocks of a model live on the host, and two of them at a time on the device.

Why not diffusers' or accelerate's hooks: theirs give every weight new memory at every turn. Results that are kept by
the weights' address (vgen.engine.speed.loop_memo) and weights that lie next to each other
(vgen.models.fusing) are then lost, and in training the backward finds no weights at all. Here a block
always comes to the same place, in one copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final

import torch
from torch import Tensor, nn

from vgen.errors import RequestError

NUM_SLOTS: Final = 2
"""Blocks on the device at a time: the one at work, and the one that is being brought in."""
_ALIGNMENT: Final = 256
"""Bytes that every run of neighbouring weights starts at a multiple of; what allocators align by."""


@dataclass
class _Slot:
    """Memory on the device for one block."""

    memory: Tensor
    holder: int | None = None  # index of the block that is in it
    arrived: Any = None  # recorded on the copying stream behind the last copy into it


@dataclass
class _Block:
    """A block on the host: one piece of memory, and the place of each weight in it."""

    memory: Tensor
    weights: list[Tensor]
    places: list[tuple[int, torch.Size, tuple[int, ...]]]
    hooks: list[Any] = field(default_factory=list)

    def views(self, memory: Tensor) -> list[Tensor]:
        """The weights in another piece of memory of the same layout."""
        views = []
        for weight, (start, shape, stride) in zip(self.weights, self.places, strict=True):
            flat = memory[start : start + _extent(shape, stride) * weight.element_size()].view(weight.dtype)
            views.append(flat.as_strided(shape, stride, flat.storage_offset()))
        return views


class BlockOffload:
    """Keeps blocks on the host and brings each to the device for its forward and, in training, for its backward.

    While a block works, the next one is copied (on a GPU: from pinned memory, on a stream of its own). The result is
    that of the model without offload, bit for bit. Every forward copies all blocks again, since weights on the host may
    have changed in between; while `weights_fixed` is set it uses what the one before has left in place. Outside a
    forward the weights are seen on the host, so that saving a model and fusing a LoRA work as always; where gradients
    are wanted they stay on the device until the backward, and with `frozen_only` until they are saved.

    Args:
        blocks: in the order in which they run. Their weights are moved into memory of this object.
        device: where they work.
        frozen_only: leave weights that are trained where they are, on the device.
        prefetch: copy ahead; None: on a GPU.
    Raises:
        RequestError: weights that are shared between blocks, or are not plain tensors.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module] | nn.ModuleList,
        device: torch.device | str,
        *,
        frozen_only: bool = False,
        prefetch: bool | None = None,
    ) -> None:
        self.device = torch.device(device)
        on_gpu = self.device.type == "cuda"
        self._prefetch = on_gpu if prefetch is None else prefetch
        self.weights_fixed = frozen_only
        self._stream = torch.cuda.Stream(self.device) if on_gpu else None
        taken = [_weights(block, frozen_only) for block in blocks]
        _check(taken)
        self._blocks = [_pack(weights, pinned=on_gpu) for weights in taken]
        largest = max((block.memory.numel() for block in self._blocks), default=0)
        count = min(NUM_SLOTS, len(self._blocks))
        self._slots = [_Slot(torch.empty(largest, dtype=torch.uint8, device=self.device)) for _ in range(count)]
        self.num_copies = 0
        for index, (module, block) in enumerate(zip(blocks, self._blocks, strict=True)):
            block.hooks = [
                module.register_forward_pre_hook(self._before(index)),
                module.register_forward_hook(self._after(index)),
                module.register_state_dict_pre_hook(self._before_saving(index)),
            ]
            if frozen_only:  # so that moving the whole model to the device finds nothing to move
                self._show(index, self._slot(index).memory)

    def forget(self) -> None:
        """Have every block copied again: to be called after weights were changed on the host."""
        for slot in self._slots:
            slot.holder = None

    def remove(self) -> None:
        """Take the hooks off; the weights stay on the host, the memory on the device is given back."""
        for index, block in enumerate(self._blocks):
            self._show_host(index)
            for hook in block.hooks:
                hook.remove()
            block.hooks = []
        self._slots = []

    def _before(self, index: int) -> Any:
        def bring(module: nn.Module, args: Any) -> None:
            if index == 0 and not self.weights_fixed:
                self.forget()
            self._bring(index, 1)

        return bring

    def _after(self, index: int) -> Any:
        def leave(module: nn.Module, args: Any, output: Any) -> None:
            if not torch.is_grad_enabled():
                self._show_host(index)
                return
            for tensor in output if isinstance(output, (tuple, list)) else (output,):
                if isinstance(tensor, Tensor) and tensor.requires_grad:
                    tensor.register_hook(lambda gradient: self._bring(index, -1))

        return leave

    def _before_saving(self, index: int) -> Any:
        def show(module: nn.Module, prefix: str, keep_vars: bool) -> None:
            self._show_host(index)

        return show

    def _show_host(self, index: int) -> None:
        self._show(index, self._blocks[index].memory)

    def _show(self, index: int, memory: Tensor) -> None:
        for weight, view in zip(self._blocks[index].weights, self._blocks[index].views(memory), strict=True):
            weight.data = view

    def _bring(self, index: int, direction: int) -> None:
        """Have a block in its place, and start to copy the one that comes after it."""
        slot = self._fill(index)
        if slot.arrived is not None:
            torch.cuda.current_stream(self.device).wait_event(slot.arrived)
        self._show(index, slot.memory)
        following = (index + direction) % len(self._blocks)
        if self._prefetch and self._slot(following) is not slot:
            self._fill(following)

    def _slot(self, index: int) -> _Slot:
        return self._slots[index % len(self._slots)]

    def _fill(self, index: int) -> _Slot:
        """Copy a block into its slot unless it is there; what still works on the slot's content comes first."""
        slot, block = self._slot(index), self._blocks[index]
        if slot.holder == index:
            return slot
        self.num_copies += 1
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream) if self._stream is not None else nullcontext(), torch.no_grad():
            slot.memory[: block.memory.numel()].copy_(block.memory, non_blocking=True)
            if self._stream is not None:
                slot.arrived = self._stream.record_event()
        slot.holder = index
        return slot


def offload_blocks(
    model: nn.Module,
    blocks: Sequence[nn.Module] | nn.ModuleList,
    device: torch.device | str,
    *,
    frozen_only: bool = False,
    prefetch: bool | None = None,
) -> BlockOffload:
    """Offload the blocks of a model, and move all that is not in a block to the device.

    Args:
        model: on the host, so that it is never on the device as a whole; `offload_of` finds the offload again.
        blocks, device, frozen_only, prefetch: see `BlockOffload`.
    """
    inside = {id(weight) for block in blocks for weight in _weights(block, frozen_only)}
    offload = BlockOffload(blocks, device, frozen_only=frozen_only, prefetch=prefetch)
    for weight in chain(model.parameters(), model.buffers()):
        if id(weight) not in inside:
            weight.data = weight.data.to(device)
    model.block_offload = offload  # type: ignore[assignment]
    return offload


def offload_of(model: nn.Module) -> BlockOffload | None:
    """The offload of a model's blocks, if `offload_blocks` has set one up."""
    return getattr(model, "block_offload", None)


def resident_bytes(model: nn.Module, blocks: Sequence[nn.Module] | nn.ModuleList, *, frozen_only: bool = False) -> int:
    """Bytes of a model on the device once its blocks are offloaded; the model may be without content.

    Args:
        model, blocks, frozen_only: see `offload_blocks`.
    """
    sizes = [sum(_bytes(weight) for weight in _weights(block, frozen_only)) for block in blocks]
    rest = weight_bytes(model) - sum(sizes)
    return rest + min(NUM_SLOTS, len(sizes)) * max(sizes, default=0)


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers of a model, which may be without content."""
    return sum(_bytes(weight) for weight in chain(model.parameters(), model.buffers()))


def _bytes(weight: Tensor) -> int:
    return weight.numel() * weight.element_size()


def _weights(block: nn.Module, frozen_only: bool) -> list[Tensor]:
    everything: Iterable[Tensor] = chain(block.parameters(), block.buffers())
    return [weight for weight in everything if weight.numel() and not (frozen_only and weight.requires_grad)]


def _check(taken: Sequence[Sequence[Tensor]]) -> None:
    seen: dict[int, int] = {}
    for index, weights in enumerate(taken):
        for weight in weights:
            kind = type(weight.data).__name__
            if type(weight.data) is not Tensor:
                raise RequestError(
                    f"offload cannot take weights of type {kind}, such as quantised ones, which are not plain memory: "
                    "leave either offload or quantising out."
                )
            if seen.setdefault(id(weight), index) != index:
                raise RequestError(
                    f"offload: blocks {seen[id(weight)]} and {index} share a weight; offload needs blocks of their own."
                )


def _pack(weights: list[Tensor], pinned: bool) -> _Block:
    """Copy a block's weights into one piece of host memory, neighbours as neighbours, and let them be views of it."""
    starts: dict[int, int] = {}
    end, behind = 0, None
    for weight in sorted(weights, key=lambda weight: weight.data_ptr()):
        if weight.data_ptr() != behind:
            end = -(-end // _ALIGNMENT) * _ALIGNMENT
        size = _extent(weight.shape, weight.stride()) * weight.element_size()
        starts[id(weight)], behind = end, weight.data_ptr() + size
        end += size
    places = [(starts[id(weight)], weight.shape, weight.stride()) for weight in weights]
    memory = torch.empty(end, dtype=torch.uint8, pin_memory=pinned)
    block = _Block(memory, weights, places)
    with torch.no_grad():
        for weight, view in zip(weights, block.views(memory), strict=True):
            view.copy_(weight.data)
            weight.data = view
    return block


def _extent(shape: torch.Size, stride: tuple[int, ...]) -> int:
    """Elements between the first and the last of a strided tensor, both included."""
    return 1 + sum((count - 1) * step for count, step in zip(shape, stride, strict=True))
