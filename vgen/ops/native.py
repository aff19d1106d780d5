"""The fused operations on a CPU by compiled C; see native.c. Each function expects what `usable` has let through."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor

from vgen.ops import switches
from vgen.ops.compiling import library

_FLOAT, _INT, _EPS = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
_SIGNATURES = {
    "vgen_residual_norm_modulate": [_FLOAT] * 8 + [_INT] * 7 + [_EPS],
    "vgen_norm_rotate": [_FLOAT] * 5 + [_INT] * 6 + [_EPS],
    "vgen_pixel_norm_silu": [_FLOAT] * 4 + [_INT] * 6 + [_EPS],
    "vgen_depth_to_space": [_FLOAT] * 2 + [_INT] * 9,
}


@cache
def _functions() -> dict[str, Any] | None:
    loaded = library()
    if loaded is None:
        return None
    functions = {}
    for name, types in _SIGNATURES.items():
        function = getattr(loaded, name)
        function.argtypes, function.restype = types, None
        functions[name] = function
    return functions


def available() -> bool:
    """Whether the operations could be compiled here."""
    return _functions() is not None


def usable(*tensors: Tensor | None) -> bool:
    """Whether the compiled operations take these tensors: plain float32 of a CPU, and nobody wants gradients."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or not switches.enabled("native"):
        return False
    for tensor in tensors:
        if tensor is None:
            continue
        # By exact type: fake, wrapped and traced tensors have no memory to point at.
        if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.dtype != torch.float32:
            return False
        if tensor.device.type != "cpu" or tensor.layout != torch.strided:
            return False
    return no_mode() and available()


def no_mode() -> bool:
    """Whether torch's operations go straight to their kernels, with nothing listening (counters, fake tensors)."""
    return torch._C._len_torch_dispatch_stack() == 0


def _call(name: str, *arguments: Any) -> None:
    functions = _functions()
    assert functions is not None
    functions[name](*(value.data_ptr() if isinstance(value, Tensor) else value for value in arguments))


def residual_norm_modulate(
    hidden_states: Tensor,
    branch: Tensor | None,
    gate: Tensor | None,
    weight: Tensor | None,
    shift: Tensor,
    scale: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """See vgen.ops.residual_norm_modulate."""
    hidden_states = hidden_states.contiguous()
    branch = None if branch is None else branch.contiguous()
    batch, tokens, size = hidden_states.shape
    (shift, scale), modulation = _rows(tokens, batch, shift, scale)
    gates, gating = ((gate,), (0, 0)) if gate is None else _rows(tokens, batch, gate)
    summed = hidden_states if branch is None else torch.empty_like(hidden_states)
    out = torch.empty_like(hidden_states)
    sizes = (batch, tokens, size, *gating, *modulation)
    name = "vgen_residual_norm_modulate"
    _call(name, hidden_states, branch, gates[0], weight, shift, scale, summed, out, *sizes, eps)
    return summed, out


def _rows(tokens: int, batch: int, *values: Tensor) -> tuple[tuple[Tensor, ...], tuple[int, int]]:
    """Tensors [B or 1, N or 1, D] of one stride with contiguous rows, and the strides of samples and rows."""
    if any(value.shape != values[0].shape for value in values):
        values = tuple(value.contiguous() for value in torch.broadcast_tensors(*values))
    if any(value.stride() != values[0].stride() or value.stride(-1) != 1 for value in values):
        values = tuple(value.contiguous() for value in values)
    first = values[0]
    of_batch = first.stride(0) if first.shape[0] == batch and batch > 1 else 0
    return values, (of_batch, first.stride(1) if first.shape[1] == tokens and tokens > 1 else 0)


def norm_rotate(
    hidden_states: Tensor, weight: Tensor, cosines: Tensor | None, sines: Tensor | None, eps: float
) -> Tensor:
    """See vgen.ops.norm_rotate."""
    if hidden_states.stride(-1) != 1:
        hidden_states = hidden_states.contiguous()
    batch, tokens, size = hidden_states.shape
    out = hidden_states.new_empty(batch, tokens, size)
    by_sample = 0
    if cosines is not None and sines is not None:
        cosines, sines = cosines.contiguous(), sines.contiguous()
        by_sample = cosines.stride(0) if cosines.shape[0] > 1 else 0
    sizes = (batch, tokens, size, hidden_states.stride(0), hidden_states.stride(1), by_sample)
    _call("vgen_norm_rotate", hidden_states, weight, cosines, sines, out, *sizes, eps)
    return out


def pixel_norm_silu(
    hidden_states: Tensor, shift: Tensor | None, scale: Tensor | None, before: int, after: int, eps: float
) -> Tensor:
    """See vgen.ops.pixel_norm_silu."""
    hidden_states = hidden_states.contiguous()
    batch, size, frames, rows, columns = hidden_states.shape
    out = hidden_states.new_empty(batch, size, before + frames + after, rows, columns)
    if shift is not None and scale is not None:
        shift, scale = (
            value.expand(batch, size, 1, 1, 1).reshape(batch, size).contiguous() for value in (shift, scale)
        )
    sizes = (batch, frames, rows * columns, size, before, after)
    _call("vgen_pixel_norm_silu", hidden_states, shift, scale, out, *sizes, eps)
    return out


def depth_to_space(hidden_states: Tensor, stride: tuple[int, int, int], skip: int) -> Tensor:
    """See vgen.ops.depth_to_space."""
    hidden_states = hidden_states.contiguous()
    batch, channels, frames, rows, columns = hidden_states.shape
    size = channels // (stride[0] * stride[1] * stride[2])
    out = hidden_states.new_empty(batch, size, frames * stride[0] - skip, rows * stride[1], columns * stride[2])
    _call("vgen_depth_to_space", hidden_states, out, batch, frames, rows, columns, size, *stride, skip)
    return out
