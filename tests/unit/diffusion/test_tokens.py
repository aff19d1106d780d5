"""Packing and the places of tokens."""

import pytest
import torch

from vgen.diffusion.tokens import pack, token_coordinates, token_grid, token_strides, unpack
from vgen.errors import ShapeError
from vgen.types import LatentShape, Strides

SHAPE, STRIDES = LatentShape(3, 2, 4), Strides(8, 32, 16)


def test_unpack_undoes_pack():
    latents = torch.randn(2, 5, *SHAPE, dtype=torch.float64)
    tokens = pack(latents)
    assert tokens.shape == (2, SHAPE.num_tokens, 5)
    assert torch.equal(unpack(tokens, SHAPE), latents)
    assert torch.equal(tokens[1, 2 * 8 + 1 * 4 + 3], latents[1, :, 2, 1, 3])


def test_tokens_of_several_latents():
    latents = torch.randn(2, 5, *SHAPE, dtype=torch.float64)
    tokens = pack(latents, 2)
    grid = token_grid(SHAPE, 2)
    assert tokens.shape == (2, grid.num_tokens, 20)
    assert torch.equal(unpack(tokens, SHAPE, 2), latents)
    assert torch.equal(tokens[0, 3].unflatten(0, (5, 2, 2)), latents[0, :, 1, :, 2:])
    coordinates = token_coordinates(grid, token_strides(STRIDES, 2), 4.0)
    assert coordinates[0, :, 3].tolist() == [0.25, 0.0, 32.0]
    with pytest.raises(ShapeError, match="patch size 3"):
        pack(latents, 3)


def test_coordinates_of_a_causal_clip():
    coordinates = token_coordinates(SHAPE, STRIDES, frame_rate=4.0, batch=2)
    assert coordinates.shape == (2, 3, 24)
    assert coordinates.dtype == torch.float32
    assert coordinates[0, 0, ::8].tolist() == [0.0, 0.25, 2.25]
    assert coordinates[1, :, 2 * 8 + 1 * 4 + 3].tolist() == [2.25, 32.0, 48.0]


def test_coordinates_without_causality_and_with_an_offset():
    plain = token_coordinates(SHAPE, STRIDES, frame_rate=4.0, causal=False)
    assert plain[0, 0, ::8].tolist() == [0.0, 2.0, 4.0]
    shifted = token_coordinates(LatentShape(1, 2, 4), STRIDES, frame_rate=4.0, frame_offset=7)
    assert shifted[0, 0].unique().tolist() == [1.75]


def test_bad_input_is_refused():
    with pytest.raises(ShapeError, match="B, C, F, H, W"):
        pack(torch.zeros(2, 3, 4))
    with pytest.raises(ShapeError, match="24"):
        unpack(torch.zeros(2, 23, 3), SHAPE)
    with pytest.raises(ShapeError, match="frame_rate=0"):
        token_coordinates(SHAPE, STRIDES, frame_rate=0)
