"""Rotary positions."""

from __future__ import annotations

import pytest
import torch

from vgen.models.transformer.rope import RotaryPositions
from vgen.ops import rotate


def _coordinates(count: int) -> torch.Tensor:
    return torch.rand((1, 3, count), generator=torch.Generator().manual_seed(0)) * torch.tensor([5.0, 96, 96])[:, None]


@pytest.mark.parametrize("hidden_size", [24, 26, 28])
def test_scores_depend_on_relative_positions_only(hidden_size):
    rope = RotaryPositions(hidden_size, theta=50.0, base_size=(20, 256, 256))
    query, key = torch.randn((2, 1, 4, hidden_size), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    coordinates = _coordinates(4)
    shift = torch.tensor([1.5, 32.0, -16.0])[:, None]
    scores = []
    for place in (coordinates, coordinates + shift):
        rotation = rope(query, coordinates=place)
        scores.append(rotate(query, *rotation) @ rotate(key, *rotation).transpose(1, 2))
    torch.testing.assert_close(scores[0], scores[1], atol=1e-4, rtol=1e-4)
    moved = coordinates.clone()
    moved[:, :, 0] += 3
    rotation = rope(query, coordinates=moved)
    other = rotate(query, *rotation) @ rotate(key, *rotation).transpose(1, 2)
    assert (other[0, 0, 1:] - scores[0][0, 0, 1:]).abs().max() > 1e-3


def test_turning_keeps_lengths_and_leaves_the_remainder_alone():
    rope = RotaryPositions(28)
    hidden_states = torch.randn((2, 5, 28), generator=torch.Generator().manual_seed(0))
    turned = rotate(hidden_states, *rope(hidden_states, coordinates=_coordinates(5)))
    torch.testing.assert_close(turned.norm(dim=-1), hidden_states.norm(dim=-1))
    torch.testing.assert_close(turned[..., :4], hidden_states[..., :4])
    assert (turned[..., 4:] - hidden_states[..., 4:]).abs().max() > 0.1


def test_a_grid_with_a_scale_equals_its_coordinates():
    rope = RotaryPositions(24)
    hidden_states = torch.zeros(1, 12, 24)
    size = torch.meshgrid(torch.arange(3.0), torch.arange(2.0), torch.arange(2.0), indexing="ij")
    coordinates = torch.stack([size[0] * 0.32, size[1] * 32, size[2] * 32]).flatten(1)[None]
    by_grid = rope(hidden_states, 3, 2, 2, (0.32, 32, 32))
    by_coordinates = rope(hidden_states, coordinates=coordinates)
    for one, other in zip(by_grid, by_coordinates, strict=True):
        torch.testing.assert_close(one.expand_as(other), other, atol=5e-3, rtol=0)


def test_both_ways_of_turning_agree(monkeypatch):
    hidden_states = torch.randn((2, 5, 26), generator=torch.Generator().manual_seed(0))
    rotation = RotaryPositions(26)(hidden_states, coordinates=_coordinates(5))
    eager = rotate(hidden_states, *rotation)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(rotate(hidden_states, *rotation), eager)


def test_half_precision_is_turned_in_float32():
    hidden_states = torch.randn((1, 5, 24), generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    rotation = RotaryPositions(24)(hidden_states, coordinates=_coordinates(5))
    assert all(part.dtype == torch.float32 for part in rotation)
    turned = rotate(hidden_states, *rotation)
    assert turned.dtype == torch.bfloat16
    assert torch.equal(turned, rotate(hidden_states.float(), *rotation).to(torch.bfloat16))
