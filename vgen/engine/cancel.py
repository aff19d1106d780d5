"""Ending a pipeline's call within a step: looked at between transformer blocks and between blocks of the VAE.

The hooks are there only while a caller can cancel. They stand on parts that the fast path runs as modules in any case,
so that frames are the same bit for bit; small shapes that a GPU plays back as one CUDA graph are looked at per step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from vgen.engine.speed.compile import is_compiled
from vgen.engine.speed.cuda_graph import LARGEST
from vgen.models.vae.blocks import ResnetBlock


@contextmanager
def cancellable(pipe: Any, check: Callable[[], None]) -> Iterator[None]:
    """Inside, `check` is called between the blocks of a pipeline's models; what it raises ends the call.

    Args:
        pipe: has `transformer` (a VideoDiT) and `vae` (a CausalVideoVAE), and perhaps a `text_encoder`.
        check: takes nothing; raises where the call must end.
    """
    handles: list[Any] = []

    def watch(modules: Any) -> None:
        handles.extend(module.register_forward_pre_hook(lambda *_: check()) for module in modules)

    def watch_blocks(transformer: Any, _: Any, arguments: dict[str, Any]) -> None:
        """At a call of the transformer, when the loop has chosen how its blocks run."""
        check()
        tokens: Tensor | None = arguments.get("hidden_states")
        recorded = tokens is not None and tokens.device.type == "cuda" and tokens[..., 0].numel() <= LARGEST
        if len(handles) == before and not recorded and not is_compiled(transformer):
            watch(block.ff for block in transformer.transformer_blocks)

    transformer = getattr(pipe, "transformer", None)
    if transformer is not None:
        watch(module for module in pipe.vae.modules() if isinstance(module, ResnetBlock))
        if getattr(pipe, "text_encoder", None) is not None:
            watch(pipe.text_encoder.encoder.block)
        handles.append(transformer.register_forward_pre_hook(watch_blocks, with_kwargs=True))
    before = len(handles)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
