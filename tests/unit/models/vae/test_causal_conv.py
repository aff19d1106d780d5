"""The convolution against its definition."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from vgen.models.vae.causal_conv import CausalConv3d


def _by_definition(conv: CausalConv3d, hidden_states: torch.Tensor, causal: bool) -> torch.Tensor:
    inner = conv.conv
    taps = inner.kernel_size[0] - 1
    before, after = (taps, 0) if causal else (taps // 2, taps // 2)
    padded = F.pad(hidden_states, (0, 0, 0, 0, before, after), mode="replicate")
    return F.conv3d(padded, inner.weight, inner.bias, inner.stride, inner.padding)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 2, 2), (1, 2, 2), (2, 1, 1)])
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("frames", [1, 2, 5])
@torch.no_grad()
def test_any_number_of_frames(frames, kernel_size, stride, causal):
    torch.manual_seed(0)
    conv = CausalConv3d(3, 4, kernel_size, stride, causal).double()
    hidden_states = torch.randn(2, 3, frames, 6, 7, dtype=torch.float64)
    actual = conv(hidden_states)
    torch.testing.assert_close(actual, _by_definition(conv, hidden_states, causal), atol=1e-12, rtol=1e-12)
    assert actual.shape[2] == (frames - 1) // stride[0] + 1


@torch.no_grad()
def test_the_last_of_a_group_alone():
    torch.manual_seed(0)
    conv = CausalConv3d(3, 2 * 3 * 4).double()
    hidden_states = torch.randn(2, 3, 1, 6, 7, dtype=torch.float64)
    expected = conv(hidden_states).unflatten(1, (2, 3, 4))[:, :, 2].flatten(1, 2)
    torch.testing.assert_close(conv(hidden_states, (3, 4)), expected)


def test_gradients_of_a_single_frame():
    """The summed kernel hands every tap of the real one the same gradient as the definition does."""
    torch.manual_seed(0)
    conv = CausalConv3d(3, 4).double()
    hidden_states = torch.randn(2, 3, 1, 6, 7, dtype=torch.float64, requires_grad=True)
    target = torch.randn(2, 4, 1, 6, 7, dtype=torch.float64)
    leaves = (hidden_states, conv.conv.weight, conv.conv.bias)
    actual = torch.autograd.grad((conv(hidden_states) * target).sum(), leaves)
    expected = torch.autograd.grad((_by_definition(conv, hidden_states, True) * target).sum(), leaves)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other)
