"""The fused operations as operators of torch: Triton on an NVIDIA GPU, the plain references elsewhere.

As `torch.ops.vgen.*` they have shapes without content (for compilers and rehearsals) and gradients. The backward pass
goes through the reference again: it costs what the plain forward costs, and holds on to nothing but the inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from vgen.ops import reference, switches

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@cache
def available() -> bool:
    """Whether Triton is installed."""
    return find_spec("triton") is not None


def usable(*tensors: Tensor | None) -> bool:
    """Whether these tensors can go through the Triton kernels: all on an NVIDIA GPU, in plain numbers.

    A compiler gets the reference instead, which it fuses with its surroundings; under autocast torch picks the dtypes.
    """
    given = [tensor for tensor in tensors if tensor is not None]
    if not all(tensor.is_cuda and tensor.dtype in _DTYPES for tensor in given):
        return False
    if torch.version.hip is not None or torch.compiler.is_compiling() or torch.is_autocast_enabled("cuda"):
        return False
    return available() and switches.enabled("triton")


def _norm_rotate(
    hidden_states: Tensor, weight: Tensor, cosines: Tensor | None, sines: Tensor | None, eps: float
) -> Tensor:
    return reference.norm_rotate(hidden_states, weight, cosines, sines, eps).contiguous()


def _like(hidden_states: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(hidden_states, memory_format=torch.contiguous_format)


def _like_twice(hidden_states: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(hidden_states), torch.empty_like(hidden_states)


def _longer(hidden_states: Tensor, shift: Any, scale: Any, before: int, after: int, eps: float) -> Tensor:
    batch, size, frames, rows, columns = hidden_states.shape
    return hidden_states.new_empty(batch, size, before + frames + after, rows, columns)


def _gradients(plain: Callable[..., Any]) -> tuple[Callable[..., Any], Callable[..., None]]:
    """The backward pass of an operator through its plain form, and what it has to keep."""

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.tensors = [index for index, value in enumerate(inputs) if isinstance(value, Tensor)]
        ctx.others = {index: value for index, value in enumerate(inputs) if not isinstance(value, Tensor)}
        ctx.save_for_backward(*(inputs[index] for index in ctx.tensors))

    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        saved = dict(zip(ctx.tensors, ctx.saved_tensors, strict=True))
        needed = [index for index in saved if ctx.needs_input_grad[index]]
        with torch.enable_grad():
            inputs = {
                index: value.detach().requires_grad_(index in needed and value.is_floating_point())
                for index, value in saved.items()
            }
            count = len(saved) + len(ctx.others)
            outputs = plain(*(inputs.get(index, ctx.others.get(index)) for index in range(count)))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        found = torch.autograd.grad(outputs, [inputs[index] for index in needed], gradients)
        by_index = dict(zip(needed, found, strict=True))
        return tuple(by_index.get(index) for index in range(count))

    return backward, keep


def _register(name: str, plain: Callable[..., Any], shapes: Callable[..., Any]) -> None:
    """Make an operator of its plain form, the Triton kernel of that name, and what gives results without content."""

    def on_gpu(hidden_states: Tensor, *others: Any) -> Any:
        # Triton starts kernels on the current device, whatever holds the tensors; torch sets it only for its own.
        with torch.cuda.device_of(hidden_states):
            return getattr(_kernels(), name)(hidden_states, *others)

    operator = torch.library.custom_op(f"vgen::{name}", plain, mutates_args=())
    operator.register_kernel("cuda")(on_gpu)
    operator.register_fake(shapes)
    backward, keep = _gradients(plain)
    operator.register_autograd(backward, setup_context=keep)


@cache
def _kernels() -> Any:
    from vgen.ops import triton_kernels

    return triton_kernels


_register("residual_norm_modulate", reference.residual_norm_modulate, _like_twice)
_register("norm_modulate", reference.norm_modulate, _like)
_register("norm_rotate", _norm_rotate, _like)
_register("pixel_norm_silu", reference.pixel_norm_silu, _longer)
norm_rotate, pixel_norm_silu = torch.ops.vgen.norm_rotate, torch.ops.vgen.pixel_norm_silu


def residual_norm_modulate(
    hidden_states: Tensor,
    branch: Tensor | None,
    gate: Tensor | None,
    weight: Tensor | None,
    shift: Tensor,
    scale: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """See vgen.ops.residual_norm_modulate; an operator must not give its input back."""
    if branch is None:
        return hidden_states, torch.ops.vgen.norm_modulate(hidden_states, weight, shift, scale, eps)
    return torch.ops.vgen.residual_norm_modulate(hidden_states, branch, gate, weight, shift, scale, eps)
