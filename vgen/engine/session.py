"""What is in force while a loaded pipeline works: the exact fast path of its device."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from vgen.engine.memory.allocator import memory_kept
from vgen.engine.memory.offload import offload_of
from vgen.engine.speed.autotune import AttentionTuner, chosen_combination
from vgen.engine.speed.compile import compile_blocks, is_compiled, release_blocks
from vgen.engine.speed.cuda_graph import blocks_recorded
from vgen.engine.speed.fast_path import FastPath, fast_path
from vgen.errors import RequestError
from vgen.models.fusing import move_together, plain
from vgen.models.transformer.attention import attention_chosen_by
from vgen.ops import switches


@dataclass
class Placement:
    """Where a pipeline works whose models are not all on its device.

    Attributes:
        device: to work on.
        hooks: of accelerate, one per model that is brought to the device when it is called, and sent back after a call.
        settings: of every call that does not say otherwise.
    """

    device: torch.device
    hooks: Sequence[Any] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def leave(self) -> None:
        """Send back to the host what was brought in."""
        for hook in self.hooks:
            hook.offload()


_LOCK = threading.Lock()
_COMPILED_BY_CHOICE: WeakSet[Any] = WeakSet()
"""Transformers whose blocks were compiled because that was measured to be faster, not by the caller."""


@contextmanager
def _sole_use(transformer: Any) -> Iterator[None]:
    """Put the fast path on, unless another call uses the transformer: both would share what it remembers."""
    with _LOCK, ExitStack() as stack:
        path: FastPath | None = transformer.fast_path
        if path is not None and path.thread != threading.get_ident():
            raise RequestError(
                "This pipeline's transformer is at work in another thread, and two calls cannot share it: wait for the "
                "other call, or load the model once more for this thread."
            )
        if path is not None and path.looping:
            raise RequestError(
                "A pipeline was called from the callback of a call that uses the same transformer: return from the "
                "callback first, or load the model once more."
            )
        stack.enter_context(fast_path(transformer, switches.enabled("hoisting")))
        opened = stack.pop_all()
    with opened:
        yield


@contextmanager
def _looping(path: FastPath, closed: bool) -> Iterator[None]:
    """Mark the loop, and say whether the weights stay as they are."""
    offload = offload_of(path.transformer)
    path.looping, path.weights_fixed = True, closed
    if offload is not None:
        before, offload.weights_fixed = offload.weights_fixed, closed
    try:
        yield
    finally:
        path.looping = path.weights_fixed = False
        if offload is not None:
            offload.weights_fixed = before


@contextmanager
def inference_session(pipeline: Any) -> Iterator[None]:
    """Inside, a pipeline's models work on the fast path: see `vgen.ops.switches` for what that is, and how to leave it.

    Args:
        pipeline: has `transformer` (a VideoDiT) and `vae` (a CausalVideoVAE), and perhaps a `placement`.
    Raises:
        RequestError: the transformer is used by a call of another thread, or by the one whose callback this is in.
    """
    placement: Placement | None = getattr(pipeline, "placement", None)
    offload = offload_of(pipeline.transformer)
    device = pipeline.vae.device if placement is None else placement.device
    moving = offload is not None or (placement is not None and placement.hooks)
    with ExitStack() as stack:
        stack.enter_context(_sole_use(pipeline.transformer))
        if device.type == "cuda":  # the current device is where kernels of others start and graphs are recorded
            stack.enter_context(torch.cuda.device(device))
        if placement is not None:
            stack.callback(placement.leave)
        if offload is not None:
            offload.forget()  # the weights may have been changed since, as by fusing a LoRA
        if device.type == "cpu" and switches.enabled("kept_memory"):
            stack.enter_context(memory_kept())
        if switches.enabled("fused_qkv") and not moving:  # moved weights do not stay together
            for block in pipeline.transformer.transformer_blocks:
                move_together(block.attn1.to_q, block.attn1.to_k, block.attn1.to_v)
        if switches.enabled("autotune"):
            stack.enter_context(attention_chosen_by(AttentionTuner()))
        yield


@contextmanager
def denoising(transformer: Any, timesteps: Tensor, rows: int, tokens: int, closed: bool) -> Iterator[None]:
    """Inside an `inference_session`, one denoising loop: what is fast because of what the loop will do.

    Args:
        transformer: a VideoDiT.
        timesteps: [K], all that the loop will ask for, see FastPath.expect_timesteps.
        rows: samples of a call, all branches of a guidance together.
        tokens: of a sample.
        closed: whether nothing but the loop acts meanwhile: no callback that could touch the model.
    """
    path = transformer.fast_path
    path.expect_timesteps(timesteps)
    with ExitStack() as stack:
        stack.enter_context(_looping(path, closed))
        stack.callback(path.expect_timesteps, None)
        if transformer.device.type == "cuda":
            measured = switches.enabled("autotune")
            _follow_choice(transformer, chosen_combination(transformer, rows, tokens) if measured else "eager")
        if switches.enabled("cuda_graph") and closed:
            stack.enter_context(blocks_recorded(path, rows * tokens))
        yield


def _follow_choice(transformer: Any, choice: str) -> None:
    """Compile blocks, or undo what was compiled for another shape; what the caller has compiled stays."""
    if choice == "compiled" and not is_compiled(transformer) and all(plain(b) for b in transformer.transformer_blocks):
        compile_blocks(transformer)
        _COMPILED_BY_CHOICE.add(transformer)
    elif choice == "eager" and transformer in _COMPILED_BY_CHOICE:
        release_blocks(transformer)
        _COMPILED_BY_CHOICE.discard(transformer)
