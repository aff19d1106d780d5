"""The loop over the blocks as one CUDA graph, for shapes so small that starting kernels takes longer than running them.

Not yet run on a GPU: recording and playing back are tested with a stand-in on the CPU, what CUDA does with them is not.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from vgen.engine.speed.fast_path import FastPath
from vgen.models.fusing import plain
from vgen.models.transformer.attention import VideoAttentionProcessor

logger = logging.getLogger(__name__)

LARGEST: Final = 2048
"""Tokens of a call, over its whole batch, up to which the GPU waits for the host."""
_DEVICE = "cuda"

Capture = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]
"""Takes work without arguments; gives back what does it again, and the tensor that then holds its result."""


@contextmanager
def blocks_recorded(path: FastPath, tokens: int, capture: Capture | None = None) -> Iterator[None]:
    """Inside, for one denoising loop, the blocks are recorded at their second call and played back from then on.

    Nothing but the inputs of the blocks may change meanwhile: weights are read from where they were then.
    Does nothing where `recordable` says no.

    Args:
        path: of the loop.
        tokens: of a call, over its whole batch.
        capture: stands in for CUDA's.
    """
    if path.recorder is not None or not recordable(path.transformer, tokens):
        yield
        return
    path.recorder = BlockRecorder(capture or capture_cuda)
    try:
        yield
    finally:
        path.recorder = None


def recordable(transformer: Any, tokens: int) -> bool:
    """Whether the blocks are small work on a GPU, and nothing acts in between that a recording would miss.

    Hooks (offloading, caches, casts), compiled blocks, processors of the caller's and tokens spread over processes do.
    """
    blocks = transformer.transformer_blocks
    return (
        tokens <= LARGEST
        and all(weight.device.type == _DEVICE for weight in blocks.parameters())
        and all(plain(module) and module._compiled_call_impl is None for module in blocks.modules())
        and all(
            type(attention.processor) is VideoAttentionProcessor and attention.processor._parallel_config is None
            for block in blocks
            for attention in (block.attn1, block.attn2)
        )
    )


def capture_cuda(work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """Record work as a CUDA graph; see Capture."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = work()
    return graph.replay, result


class BlockRecorder:
    """Runs the loop over the blocks: the first call of a shape as it is, the second recorded, later ones played back.

    Args:
        capture: records.
    """

    def __init__(self, capture: Capture) -> None:
        self.capture = capture
        self._met: set[Any] = set()
        self._recordings: dict[Any, _Recording] = {}
        self._failed = False

    def __call__(self, blocks: Callable[..., Tensor], *inputs: Any) -> Tensor:
        """[B, N, D] -> [B, N, D]; the result is overwritten by the next call of that shape.

        Args:
            blocks: the loop.
            *inputs: its arguments; tensors among them may differ from call to call.
        """
        leaves, structure = tree_flatten(inputs)
        tensors: dict[int, Tensor] = {id(leaf): leaf for leaf in leaves if isinstance(leaf, Tensor)}
        order = {name: index for index, name in enumerate(tensors)}
        slots = [order.get(id(leaf)) for leaf in leaves]
        others = tuple(leaf for leaf in leaves if not isinstance(leaf, Tensor))
        kinds = tuple((tensor.shape, tensor.stride(), tensor.dtype, tensor.device) for tensor in tensors.values())
        key = (str(structure), tuple(slots), others, kinds)
        given = list(tensors.values())
        if self._failed or key not in self._met:  # by the first run everything is loaded and chosen
            self._met.add(key)
            return blocks(*inputs)
        if key not in self._recordings:
            fixed = [tensor.clone() for tensor in given]
            rest = iter(others)
            static = [next(rest) if slot is None else fixed[slot] for slot in slots]
            arguments = tree_unflatten(static, structure)
            try:
                play, result = self.capture(lambda: blocks(*arguments))
            except RuntimeError as error:
                logger.warning("The blocks could not be recorded as a CUDA graph, and run as they are: %s", error)
                self._failed = True
                return blocks(*inputs)
            self._recordings[key] = _Recording(fixed, play, result)
        return self._recordings[key].run(given)


class _Recording:
    """What was recorded: `play` does the work again, from `inputs` to `result`."""

    def __init__(self, inputs: Sequence[Tensor], play: Callable[[], None], result: Tensor) -> None:
        self._inputs, self._play, self._result = inputs, play, result
        self._sources: list[tuple[Tensor | None, int]] = [(None, -1)] * len(inputs)

    def run(self, given: Sequence[Tensor]) -> Tensor:
        """The result for other inputs; those that are the very same as last time are not copied again."""
        for index, (target, source) in enumerate(zip(self._inputs, given, strict=True)):
            version = -1 if source.is_inference() else source._version  # those of inference mode do not count changes
            last, last_version = self._sources[index]
            if last is source and last_version == version >= 0:
                continue
            target.copy_(source)
            self._sources[index] = (source, version)
        self._play()
        return self._result
