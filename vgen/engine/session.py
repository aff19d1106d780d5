"""What is in force while a loaded pipeline works: the exact fast path of its device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor

from vgen.engine.allocator import memory_kept
from vgen.models.fusing import move_together
from vgen.ops import parts


@contextmanager
def inference_session(pipeline: Any) -> Iterator[None]:
    """Inside, a pipeline's models work on the fast path: see `vgen.ops.parts` for what that is, and how to leave it.

    Args:
        pipeline: has `transformer` (a VideoDiT) and `vae` (a CausalVideoVAE).
    """
    with ExitStack() as stack:
        if pipeline.vae.device.type == "cpu" and parts.enabled("kept_memory"):
            stack.enter_context(memory_kept())
        if parts.enabled("fused_qkv"):
            for block in pipeline.transformer.transformer_blocks:
                move_together(block.attn1.to_q, block.attn1.to_k, block.attn1.to_v)
        if parts.enabled("hoisting"):
            stack.enter_context(pipeline.transformer.hoisting())
        yield


@contextmanager
def denoising(transformer: Any, timesteps: Tensor) -> Iterator[None]:
    """Inside an `inference_session`, one denoising loop: what is fast because of what the loop will do.

    Args:
        transformer: a VideoDiT.
        timesteps: [K], all that the loop will ask for, see VideoDiT.expect_timesteps.
    """
    transformer.expect_timesteps(timesteps)
    try:
        yield
    finally:
        transformer.expect_timesteps(None)
