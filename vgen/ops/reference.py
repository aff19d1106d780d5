"""What the fused operations compute, in plain torch: the measure of all other ways, and what training runs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


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
    if branch is not None:
        hidden_states = hidden_states + branch if gate is None else torch.addcmul(hidden_states, branch, gate)
    normed = F.rms_norm(hidden_states, hidden_states.shape[-1:], weight, eps)
    return hidden_states, torch.addcmul(shift, normed, 1 + scale)


def norm_modulate(hidden_states: Tensor, weight: Tensor | None, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """As `residual_norm_modulate` without a branch: only the second result."""
    return residual_norm_modulate(hidden_states, None, None, weight, shift, scale, eps)[1]


def rotate(hidden_states: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turn neighbouring pairs of channels: (a, b) -> (a cos - b sin, b cos + a sin), in float32.

    Args:
        hidden_states: [B, N, D].
        cosines, sines: [B or 1, N, D // 2].
    Returns:
        [B, N, D], dtype of `hidden_states`.
    """
    pairs = hidden_states.float().unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():  # real arithmetic fuses there; complex numbers would not
        first, second = pairs.unbind(-1)
        turned = torch.stack([first * cosines - second * sines, second * cosines + first * sines], dim=-1)
    else:
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.complex(cosines, sines))
    return turned.flatten(-2).to(hidden_states.dtype)


def norm_rotate(
    hidden_states: Tensor, weight: Tensor, cosines: Tensor | None, sines: Tensor | None, eps: float
) -> Tensor:
    """See vgen.ops.norm_rotate."""
    # Under autocast the weight may have another dtype than the input: a mixed pair falls back to a slow path.
    normed = F.rms_norm(hidden_states, hidden_states.shape[-1:], weight.to(hidden_states.dtype), eps)
    return normed if cosines is None or sines is None else rotate(normed, cosines, sines)


def pixel_norm(hidden_states: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm over the channels of [B, C, ...]; the mean is taken in float32."""
    mean_square = hidden_states.float().square().mean(dim=1, keepdim=True)
    return (hidden_states * torch.rsqrt(mean_square + eps)).to(hidden_states.dtype)


def repeat_edges(hidden_states: Tensor, before: int, after: int) -> Tensor:
    """[B, C, F, H, W] with the first frame repeated `before` times in front and the last `after` times behind."""
    pieces = [hidden_states]
    if before:
        pieces.insert(0, hidden_states[:, :, :1].expand(-1, -1, before, -1, -1))
    if after:
        pieces.append(hidden_states[:, :, -1:].expand(-1, -1, after, -1, -1))
    return torch.cat(pieces, dim=2) if len(pieces) > 1 else hidden_states


def pixel_norm_silu(
    hidden_states: Tensor, shift: Tensor | None, scale: Tensor | None, before: int, after: int, eps: float
) -> Tensor:
    """See vgen.ops.pixel_norm_silu."""
    normed = pixel_norm(hidden_states, eps)
    if shift is not None and scale is not None:
        normed = normed * (1 + scale) + shift
    return repeat_edges(F.silu(normed), before, after)


def depth_to_space(hidden_states: Tensor, stride: tuple[int, int, int], skip: int) -> Tensor:
    """See vgen.ops.depth_to_space."""
    a, b, c = stride
    return rearrange(hidden_states, "n (d a b c) f h w -> n d (f a) (h b) (w c)", a=a, b=b, c=c)[:, :, skip:]


def linear_gelu(hidden_states: Tensor, weight: Tensor, bias: Tensor | None, approximate: str) -> Tensor:
    """See vgen.ops.linear_gelu."""
    return F.gelu(F.linear(hidden_states, weight, bias), approximate=approximate)
