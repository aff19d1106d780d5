"""The fused operations in Triton: sums in float32, one rounding at the end. Imported only where Triton is installed."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_POSITIONS = 64


@triton.jit
def _residual_norm_modulate(
    x, branch, gate, weight, shift, scale, summed, out,
    tokens, size, gate_batch, gate_row, mod_batch, mod_row, eps,
    has_branch: tl.constexpr, has_gate: tl.constexpr, has_weight: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """One program per token: see vgen.ops.residual_norm_modulate."""
    row = tl.program_id(0).to(tl.int64)
    sample, token = row // tokens, row % tokens
    channel = tl.arange(0, block)
    inside = channel < size
    value = tl.load(x + row * size + channel, mask=inside, other=0.0).to(tl.float32)
    if has_branch:
        added = tl.load(branch + row * size + channel, mask=inside, other=0.0).to(tl.float32)
        if has_gate:
            place = gate + sample * gate_batch + token * gate_row + channel
            added = added * tl.load(place, mask=inside, other=0.0).to(tl.float32)
        value = value + added
        tl.store(summed + row * size + channel, value.to(summed.dtype.element_ty), mask=inside)
    normed = value * (1.0 / tl.sqrt(tl.sum(value * value, axis=0) / size + eps))
    if has_weight:
        normed = normed * tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32)
    place = sample * mod_batch + token * mod_row + channel
    factor = 1.0 + tl.load(scale + place, mask=inside, other=0.0).to(tl.float32)
    result = normed * factor + tl.load(shift + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * size + channel, result.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _norm_rotate(
    x, weight, cosines, sines, out,
    tokens, half, x_batch, x_row, angle_batch, eps,
    rotates: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """One program per token: see vgen.ops.norm_rotate."""
    row = tl.program_id(0).to(tl.int64)
    sample, token = row // tokens, row % tokens
    channel = tl.arange(0, block)
    inside = channel < 2 * half
    value = tl.load(x + sample * x_batch + token * x_row + channel, mask=inside, other=0.0).to(tl.float32)
    value = value * (1.0 / tl.sqrt(tl.sum(value * value, axis=0) / (2 * half) + eps))
    value = value * tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32)
    if rotates:
        pair = tl.arange(0, block // 2)
        place = sample * angle_batch + token * half + pair
        cosine = tl.load(cosines + place, mask=pair < half, other=0.0)
        sine = tl.load(sines + place, mask=pair < half, other=0.0)
        first, second = tl.split(tl.reshape(value, (block // 2, 2)))
        turned = tl.join(first * cosine - second * sine, second * cosine + first * sine)
        value = tl.reshape(turned, (block,))
    tl.store(out + row * 2 * half + channel, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _pixel_norm_silu(
    x, shift, scale, out,
    size, frames, area,
    x_batch, x_channel, x_position, out_batch, out_channel, out_position, eps,
    before: tl.constexpr, after: tl.constexpr, modulates: tl.constexpr, positions: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """One program for some positions of a clip, all channels of each: see vgen.ops.pixel_norm_silu."""
    sample = tl.program_id(1).to(tl.int64)
    position = tl.program_id(0).to(tl.int64) * positions + tl.arange(0, positions)
    channel = tl.arange(0, block).to(tl.int64)  # channels apart by a large clip's positions pass what 32 bits hold
    here = position < frames * area
    inside = here[:, None] & (channel < size)[None, :]
    source = x + sample * x_batch + position[:, None] * x_position + channel[None, :] * x_channel
    value = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    value = value * (1.0 / tl.sqrt(tl.sum(value * value, axis=1) / size + eps))[:, None]
    if modulates:
        place = sample * size + channel
        factor = 1.0 + tl.load(scale + place, mask=channel < size, other=0.0).to(tl.float32)
        added = tl.load(shift + place, mask=channel < size, other=0.0).to(tl.float32)
        value = value * factor[None, :] + added[None, :]
    value = (value / (1.0 + tl.exp(-value))).to(out.dtype.element_ty)
    target = out + sample * out_batch + position[:, None] * out_position + channel[None, :] * out_channel
    tl.store(target + before * area * out_position, value, mask=inside)
    first = inside & (position < area)[:, None]
    for frame in range(before):
        tl.store(target + frame * area * out_position, value, mask=first)
    last = inside & (position >= (frames - 1) * area)[:, None]
    for frame in range(after):
        tl.store(target + (before + 1 + frame) * area * out_position, value, mask=last)


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
    batch, tokens, size = hidden_states.shape
    out = torch.empty_like(hidden_states)
    summed = hidden_states if branch is None else torch.empty_like(hidden_states)
    added = hidden_states if branch is None else branch.contiguous()
    gated, gating = _rows(batch, tokens, hidden_states if gate is None else gate)
    shift, modulation = _rows(batch, tokens, shift)
    scale, same = _rows(batch, tokens, scale)
    if same != modulation:
        shift, scale = (value.expand(batch, tokens, size).contiguous() for value in (shift, scale))
        modulation = (tokens * size, size)
    _residual_norm_modulate[(batch * tokens,)](
        hidden_states, added, gated, hidden_states if weight is None else weight, shift, scale, summed, out,
        tokens, size, *gating, *modulation, eps,
        branch is not None, gate is not None, weight is not None, triton.next_power_of_2(size),
        num_warps=8 if size > 2048 else 4,
    )  # fmt: skip
    return summed, out


def norm_modulate(hidden_states: Tensor, weight: Tensor | None, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """As `residual_norm_modulate` without a branch: only the second result."""
    return residual_norm_modulate(hidden_states, None, None, weight, shift, scale, eps)[1]


def _rows(batch: int, tokens: int, value: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """[B or 1, N or 1, D] with contiguous rows, and the strides from sample to sample and from row to row."""
    value = value if value.stride(-1) == 1 else value.contiguous()
    of_batch = value.stride(0) if value.shape[0] == batch and batch > 1 else 0
    return value, (of_batch, value.stride(1) if value.shape[1] == tokens and tokens > 1 else 0)


def norm_rotate(
    hidden_states: Tensor, weight: Tensor, cosines: Tensor | None, sines: Tensor | None, eps: float
) -> Tensor:
    """See vgen.ops.norm_rotate; D is even."""
    if hidden_states.stride(-1) != 1:
        hidden_states = hidden_states.contiguous()
    batch, tokens, size = hidden_states.shape
    out = hidden_states.new_empty(batch, tokens, size)
    turns = cosines is not None and sines is not None
    if cosines is not None and sines is not None:
        cosines, sines = cosines.contiguous(), sines.contiguous()
    else:
        cosines = sines = hidden_states
    _norm_rotate[(batch * tokens,)](
        hidden_states, weight, cosines, sines, out,
        tokens, size // 2, hidden_states.stride(0), hidden_states.stride(1),
        cosines.stride(0) if turns and cosines.shape[0] > 1 else 0, eps,
        turns, triton.next_power_of_2(size),
        num_warps=8 if size > 2048 else 4,
    )  # fmt: skip
    return out


def pixel_norm_silu(
    hidden_states: Tensor, shift: Tensor | None, scale: Tensor | None, before: int, after: int, eps: float
) -> Tensor:
    """See vgen.ops.pixel_norm_silu; the layout of the result is that of the input, channels first or last."""
    last = hidden_states.is_contiguous(memory_format=torch.channels_last_3d)
    layout = torch.channels_last_3d if last else torch.contiguous_format
    hidden_states = hidden_states.contiguous(memory_format=layout)
    batch, size, frames, rows, columns = hidden_states.shape
    total, area = before + frames + after, rows * columns
    out = torch.empty(
        (batch, size, total, rows, columns),
        dtype=hidden_states.dtype,
        device=hidden_states.device,
        memory_format=layout,
    )
    modulates = shift is not None and scale is not None
    if shift is not None and scale is not None:
        shift, scale = (
            value.expand(batch, size, 1, 1, 1).reshape(batch, size).contiguous() for value in (shift, scale)
        )
    else:
        shift = scale = hidden_states

    def strides(length: int) -> tuple[int, int, int]:
        return (size * length * area, 1, size) if last else (size * length * area, length * area, 1)

    block = triton.next_power_of_2(size)
    positions = max(1, min(_POSITIONS, 16384 // block))
    grid = (triton.cdiv(frames * area, positions), batch)
    _pixel_norm_silu[grid](
        hidden_states, shift, scale, out,
        size, frames, area, *strides(frames), *strides(total), eps,
        before, after, modulates, positions, block,
        num_warps=8,
    )  # fmt: skip
    return out
