"""The shared layers against their definitions."""

from __future__ import annotations

import math

import torch

from vgen.models.layers import ChannelLayerNorm, PixelNorm, sinusoidal_embedding


def test_sinusoidal_embedding():
    embedding = sinusoidal_embedding(torch.tensor([0.0, 250.0]), channels=8)
    assert embedding[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    for k in range(4):
        angle = 250.0 * 10000.0 ** (-k / 4)
        assert math.isclose(embedding[1, k], math.cos(angle), abs_tol=1e-4)
        assert math.isclose(embedding[1, 4 + k], math.sin(angle), abs_tol=1e-4)


def test_pixel_norm_pools_over_channels_alone():
    hidden_states = torch.randn((2, 8, 3, 4, 5), generator=torch.Generator().manual_seed(0))
    normed = PixelNorm()(hidden_states)
    torch.testing.assert_close(normed.square().mean(dim=1), torch.ones(2, 3, 4, 5))
    hidden_states[:, :, 1] *= 7
    torch.testing.assert_close(PixelNorm()(hidden_states), normed)
    half = hidden_states.to(torch.bfloat16)
    assert PixelNorm()(half).dtype == torch.bfloat16


def test_channel_layer_norm():
    norm = ChannelLayerNorm(8)
    with torch.no_grad():
        norm.weight.copy_(torch.arange(8.0))
        norm.bias.fill_(0.5)
    normed = norm(torch.randn((2, 8, 3, 4, 5), generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(normed[:, 0], torch.full((2, 3, 4, 5), 0.5))
    plain = (normed[:, 1:] - 0.5) / torch.arange(1.0, 8)[None, :, None, None, None]
    assert (plain.mean(dim=1) < 1).all() and plain.std() > 0.5
