"""Fused operations, each with a plain reference: what the models call.

Every function picks the fastest way that gives the same result where it runs: compiled C on a CPU, Triton on an NVIDIA
GPU, else plain torch. With gradients wanted on a CPU it is always plain torch. `vgen.ops.switches` turns ways off.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vgen.ops import cuda, native, reference, switches
from vgen.ops.reference import pixel_norm, repeat_edges, rotate

_WORTH_A_CALL = 2**17
"""Numbers in a clip: with fewer, nothing is gained that would be worth another rounding."""

__all__ = [
    "conv3d",
    "depth_to_space",
    "linear_gelu",
    "norm_rotate",
    "pixel_norm",
    "pixel_norm_silu",
    "repeat_edges",
    "residual_norm_modulate",
    "rotate",
]


def residual_norm_modulate(
    hidden_states: Tensor,
    branch: Tensor | None,
    gate: Tensor | None,
    weight: Tensor | None,
    shift: Tensor,
    scale: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Add a gated branch, normalise, modulate.

    sum = hidden_states + branch * gate;  out = rms_norm(sum) * weight * (1 + scale) + shift

    Args:
        hidden_states: [B, N, D].
        branch: [B, N, D], or None.
        gate: [B, N or 1, D]; None is 1.
        weight: [D] of the norm; None is 1.
        shift, scale: [B, N or 1, D].
        eps: of the norm.
    Returns:
        sum and out, [B, N, D] each, dtype of `hidden_states`. Without a branch the sum is `hidden_states` itself.
    """
    if native.usable(hidden_states, branch, gate, weight, shift, scale):
        return native.residual_norm_modulate(hidden_states, branch, gate, weight, shift, scale, eps)
    if cuda.usable(hidden_states, branch, gate, weight, shift, scale):
        return cuda.residual_norm_modulate(hidden_states, branch, gate, weight, shift, scale, eps)
    return reference.residual_norm_modulate(hidden_states, branch, gate, weight, shift, scale, eps)


def norm_rotate(
    hidden_states: Tensor, weight: Tensor, cosines: Tensor | None, sines: Tensor | None, eps: float
) -> Tensor:
    """Normalise queries or keys over all heads, then turn neighbouring pairs of channels.

    Args:
        hidden_states: [B, N, D].
        weight: [D] of the norm.
        cosines, sines: [B or 1, N, D // 2], float32; None: not turned.
        eps: of the norm.
    Returns:
        [B, N, D], dtype of `hidden_states`.
    """
    if native.usable(hidden_states, weight, cosines, sines):
        return native.norm_rotate(hidden_states, weight, cosines, sines, eps)
    if cuda.usable(hidden_states, weight, cosines, sines):
        return cuda.norm_rotate(hidden_states, weight, cosines, sines, eps)
    return reference.norm_rotate(hidden_states, weight, cosines, sines, eps)


def pixel_norm_silu(
    hidden_states: Tensor,
    shift: Tensor | None = None,
    scale: Tensor | None = None,
    before: int = 0,
    after: int = 0,
    eps: float = 1e-8,
) -> Tensor:
    """Normalise over channels, modulate, SiLU, and repeat the first and the last frame.

    Args:
        hidden_states: [B, C, F, H, W].
        shift, scale: [B, C, 1, 1, 1]; out = silu(norm * (1 + scale) + shift); or both None.
        before, after: how often the first frame is repeated in front, and the last behind.
        eps: of the norm.
    Returns:
        [B, C, before + F + after, H, W], dtype of `hidden_states`.
    """
    if hidden_states.numel() >= _WORTH_A_CALL and native.usable(hidden_states, shift, scale):
        return native.pixel_norm_silu(hidden_states, shift, scale, before, after, eps)
    if cuda.usable(hidden_states, shift, scale):
        return cuda.pixel_norm_silu(hidden_states, shift, scale, before, after, eps)
    return reference.pixel_norm_silu(hidden_states, shift, scale, before, after, eps)


def depth_to_space(hidden_states: Tensor, stride: tuple[int, int, int], skip: int = 0) -> Tensor:
    """Channels to frames, rows and columns.

    Args:
        hidden_states: [B, C * a * b * c, F, H, W].
        stride: (a, b, c).
        skip: frames of the result that are left out in front.
    Returns:
        [B, C, F * a - skip, H * b, W * c].
    """
    if native.usable(hidden_states):
        return native.depth_to_space(hidden_states, stride, skip)
    return reference.depth_to_space(hidden_states, stride, skip)


def linear_gelu(hidden_states: Tensor, weight: Tensor, bias: Tensor | None, approximate: str) -> Tensor:
    """A linear layer and GELU: [..., D] -> [..., E]; the GELU in the product's epilogue where that exists.

    Args:
        hidden_states: [..., D].
        weight, bias: [E, D] and [E].
        approximate: "tanh" or "none".
    """
    plain = torch.is_grad_enabled() or torch.compiler.is_compiling() or not switches.enabled("epilogue")
    if not plain and _blocked(hidden_states, weight):
        return torch.ops.mkldnn._linear_pointwise(hidden_states, weight, bias, "gelu", [], approximate)
    if not plain and hidden_states.is_meta:  # a rehearsal counts what the fused product takes
        return hidden_states.new_empty(*hidden_states.shape[:-1], len(weight))
    if not plain and hidden_states.is_cuda and approximate == "tanh" and bias is not None:
        rows = hidden_states.flatten(0, -2)
        fused = torch._addmm_activation(bias, rows, weight.t(), use_gelu=True)
        return fused.unflatten(0, hidden_states.shape[:-1])
    return reference.linear_gelu(hidden_states, weight, bias, approximate)


def conv3d(
    hidden_states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
) -> Tensor:
    """torch's conv3d; on a CPU always by the blocked kernels, which torch leaves aside for small inputs.

    Args:
        hidden_states: [B, C, F, H, W].
        weight, bias: [D, C, k, k, k] and [D].
        stride, padding: one per axis.
    """
    plain = torch.is_grad_enabled() or torch.compiler.is_compiling() or not switches.enabled("direct_convolution")
    if plain or not _blocked(hidden_states, weight):
        return F.conv3d(hidden_states, weight, bias, stride, padding)
    if weight.shape[2:].numel() == 1 and max(stride) == 1:
        product = torch.matmul(weight.flatten(1), hidden_states.flatten(2)).unflatten(2, hidden_states.shape[2:])
        return product if bias is None else product.add_(bias[:, None, None, None])
    return torch.ops.aten.mkldnn_convolution(hidden_states, weight, bias, padding, stride, (1, 1, 1), 1)


def _blocked(hidden_states: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN's kernels can be called for these, with nothing listening in between."""
    plain = type(hidden_states) is Tensor and type(weight) in (Tensor, torch.nn.Parameter)
    return (
        plain
        and hidden_states.device.type == "cpu"
        and hidden_states.dtype == weight.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
        and native.no_mode()
    )
