"""Fused operations on an NVIDIA GPU give what their plain references give: float32, bfloat16, odd sizes, views."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from vgen import ops
from vgen.ops import cuda, reference, switches

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-7}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


@pytest.fixture
def poisoned() -> Iterator[None]:
    """New tensors hold NaN: what a kernel leaves out is seen."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def _random(*size: int) -> torch.Tensor:
    return torch.randn(size, device="cuda")


def _norms(tokens: int, size: int) -> Iterator[tuple[object, ...]]:
    """Modulation as a block makes it (views of one tensor), by sample and by token; contiguous tokens and views."""
    whole, branch, weight = _random(2, tokens, 3 * size), _random(2, size, tokens).mT, _random(size)
    for rows in {1, tokens}:
        shift, scale, gate = _random(2, rows, 6, size).unbind(dim=2)[:3]
        for hidden in (whole[..., :size], whole[..., :size].contiguous()):
            yield hidden, None, None, None, shift, scale, 1e-6
            yield hidden, branch, None, None, shift, scale, 1e-6
            yield hidden, branch.contiguous(), gate, weight, shift, scale, 1e-5
            yield hidden, branch, gate, None, shift[:1], scale, 1e-6  # of one sample, and of each


def _rotations(tokens: int, size: int) -> Iterator[tuple[object, ...]]:
    whole, weight = _random(2, tokens, 3 * size), _random(size)
    for hidden in (whole.chunk(3, dim=-1)[1], whole[..., -size:].contiguous(), _random(2, size, tokens).mT):
        yield hidden, weight, None, None, 1e-5
        for samples in (1, 2):
            angles = _random(samples, tokens, size // 2) * 10
            yield hidden, weight, angles.cos(), angles.sin(), 1e-5


def _clips(size: int, frames: int, rows: int, columns: int) -> Iterator[tuple[object, ...]]:
    clip = _random(2, size, frames + 2, rows, columns) * 3
    shift, scale = _random(2, 4 * size)[:, :, None, None, None].unflatten(1, (4, size)).unbind(dim=1)[1:3]
    for before, after in ((0, 0), (2, 0), (0, 1), (1, 1), (2, 1)):
        yield clip[:, :, 1:-1], None, None, before, after, 1e-8
        last = clip[:, :, :frames].contiguous(memory_format=torch.channels_last_3d)
        yield last, shift, scale, before, after, 1e-8
        yield clip.contiguous(), shift[:1], scale[:1], before, after, 1e-8


CASES = {
    "residual_norm_modulate": (_norms, [(1, 24), (7, 37), (1000, 512), (77, 2048), (33, 4096)]),
    "norm_rotate": (_rotations, [(1, 24), (7, 38), (1000, 512), (77, 2048), (33, 4096)]),
    "pixel_norm_silu": (_clips, [(3, 2, 3, 5), (16, 1, 1, 1), (100, 3, 17, 9), (128, 5, 32, 48), (1024, 2, 7, 11)]),
}
ALL = [(name, size) for name, (_, sizes) in CASES.items() for size in sizes]


def _outputs(found: object) -> tuple[torch.Tensor, ...]:
    return found if isinstance(found, tuple) else (found,)


@DTYPES
@pytest.mark.parametrize(("name", "size"), ALL, ids=str)
@torch.no_grad()
def test_triton_equals_the_reference(name, size, dtype, poisoned):
    make, _ = CASES[name]
    for case in make(*size):
        angles = (2, 3) if name == "norm_rotate" else ()
        given = [
            value.to(dtype) if torch.is_tensor(value) and index not in angles else value
            for index, value in enumerate(case)
        ]
        assert cuda.usable(*(value for value in given if torch.is_tensor(value)))
        found = _outputs(getattr(ops, name)(*given))
        exact = (value.float() if torch.is_tensor(value) else value for value in given)
        for one, other in zip(found, _outputs(getattr(reference, name)(*exact)), strict=True):
            assert one.dtype == dtype
            torch.testing.assert_close(one.float(), other, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("name", CASES)
def test_gradients_equal_those_of_the_reference(name):
    make, sizes = CASES[name]
    case = list(make(*sizes[1]))[-1]
    gradients = []
    for function in (getattr(ops, name), getattr(reference, name)):
        given = [value.detach().clone().requires_grad_() if torch.is_tensor(value) else value for value in case]
        sum((value * value).sum() for value in _outputs(function(*given))).backward()
        gradients.append([value.grad for value in given if torch.is_tensor(value)])
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


@DTYPES
@torch.no_grad()
def test_gelu_in_the_epilogue_equals_the_reference(dtype):
    hidden, weight, bias = _random(2, 77, 3, 512)[:, :, 1], _random(2048, 512) / 512**0.5, _random(2048)
    hidden, weight, bias = hidden.to(dtype), weight.to(dtype), bias.to(dtype)
    found = ops.linear_gelu(hidden, weight, bias, "tanh")
    exact = F.gelu(F.linear(hidden.double(), weight.double(), bias.double()), approximate="tanh")
    assert found.shape == (2, 77, 2048) and found.dtype == dtype
    torch.testing.assert_close(found.double(), exact, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@torch.no_grad()
def test_triton_is_left_aside_where_it_is_turned_off_or_the_numbers_are_wide():
    hidden = _random(1, 3, 24)
    assert not cuda.usable(hidden.double()) and not cuda.usable(hidden, hidden.cpu())
    with switches.without("triton"):
        assert not cuda.usable(hidden)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@torch.no_grad()
def test_kernels_start_where_their_tensors_lie():
    hidden, weight = torch.randn(2, 33, 64, device="cuda:1"), torch.randn(64, device="cuda:1")
    expected = reference.norm_rotate(hidden, weight, None, None, 1e-5)
    torch.testing.assert_close(ops.norm_rotate(hidden, weight, None, None, 1e-5), expected, atol=1e-5, rtol=1e-5)
