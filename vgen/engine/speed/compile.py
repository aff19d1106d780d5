"""Regional compilation: the one block that a transformer repeats, compiled once for any length, and kept on disk."""

from __future__ import annotations

import logging
import os
from typing import Any, Final

import torch
from torch import Tensor, nn

from vgen.io.files import private_folder

logger = logging.getLogger(__name__)

_FOLDER: Final = "TORCHINDUCTOR_CACHE_DIR"
_PROGRAMS: Final = 32


def compile_blocks(transformer: Any) -> None:
    """Compile the blocks of a transformer, all of them as one program, when it is next called.

    The number of tokens stays open, so that clips of other sizes use the same program. What was compiled is found
    again by later processes, see `keep_compiled`. The first call takes up to some minutes; results differ by rounding.

    Args:
        transformer: a VideoDiT; compiled already, it stays as it is.
    """
    import torch._dynamo  # takes seconds, which only compiling is worth

    keep_compiled()
    # Training, sampling with and without guidance, and validation each need a program; torch gives up after eight.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _PROGRAMS)
    if not is_compiled(transformer):
        transformer.compile_repeated_blocks(dynamic=True)
        transformer.proj_in.register_forward_hook(_as_between_blocks)


def release_blocks(transformer: Any) -> None:
    """Undo `compile_blocks`."""
    for block in transformer.transformer_blocks:
        block._compiled_call_impl = None
    hooks = transformer.proj_in._forward_hooks
    for name in [name for name, hook in hooks.items() if hook is _as_between_blocks]:
        del hooks[name]


def _as_between_blocks(module: nn.Module, args: Any, hidden_states: Tensor) -> Tensor:
    """What the first block gets as the others get it, so that one program fits all: no view; float32 in autocast."""
    kind = hidden_states.device.type
    mixed = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return hidden_states.to(torch.float32 if mixed else hidden_states.dtype, copy=True)


def is_compiled(transformer: Any) -> bool:
    """Whether a block of a transformer is compiled."""
    return any(block._compiled_call_impl is not None for block in transformer.transformer_blocks)


def keep_compiled() -> str | None:
    """Let torch's compiler keep what it makes in vgen's cache folder (`compile` in it), not in a temporary one.

    A folder that TORCHINDUCTOR_CACHE_DIR names already is left alone.

    Returns:
        The folder; None where there is none that only this user can write to: then torch's own is used.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    named = os.environ.get(_FOLDER)
    if named and named != default_cache_dir():  # torch writes its own default there as soon as anything asks for it
        return named
    try:
        folder = str(private_folder("compile"))
    except OSError as error:
        logger.info("What is compiled is not kept: %s", error)
        return None
    os.environ[_FOLDER] = folder  # torch looks there whenever it compiles; only the environment tells it where
    return folder
