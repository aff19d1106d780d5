"""Which cells are encoded again after sampling, and what from."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vgen.pipelines.coding.given_pixels import GivenPixels
from vgen.pipelines.coding.reencode import cells_to_renew, renew_known
from vgen.types import Strides

STRIDES = Strides(temporal=4, height=8, width=8)


def _known(hidden: tuple[slice, slice, slice]) -> torch.Tensor:
    known = torch.ones(1, 1, 5, 48, 48)
    known[:, :, *hidden] = 0
    return known


def test_the_inside_of_a_hidden_box_stays_and_its_border_does_not():
    renewed = cells_to_renew(_known((slice(None), slice(8, 48), slice(8, 48))), STRIDES)[0, 0, 0]
    expected = torch.ones(6, 6, dtype=torch.bool)
    expected[2:, 2:] = False
    assert torch.equal(renewed, expected)


def test_a_cell_of_which_a_part_is_known_is_renewed_but_not_those_beside_it():
    known = torch.zeros(1, 1, 5, 48, 48)
    known[:, :, :, 20:22, 20:22] = 1
    assert cells_to_renew(known, STRIDES)[0, 0, 0].nonzero().tolist() == [[2, 2]]


def test_frames_are_apart():
    renewed = cells_to_renew(_known((slice(1, 3), slice(None), slice(None))), STRIDES)[0, 0]
    assert renewed[0].all()
    assert renewed[1].all(), "frames 3 and 4 of its four are known"
    assert not cells_to_renew(_known((slice(1, 5), slice(None), slice(None))), STRIDES)[0, 0, 1].any()


@pytest.mark.parametrize("passes", [0, 1, 2, 3, 4])
def test_each_further_pass_gives_back_what_those_before_lost_of_known_pixels(passes: int) -> None:
    """With a coder that keeps four fifths of every value, a fifth of the error is left after each pass."""
    vae: Any = SimpleNamespace(dtype=torch.float32, strides=Strides(1, 1, 1))
    settings: Any = SimpleNamespace(known_passes=passes, num_videos_per_prompt=1)
    coder: Any = SimpleNamespace(
        vae=vae,
        settings=settings,
        decode=lambda latents: latents,
        encode=lambda pixels, sample_posterior: 0.8 * pixels,
    )
    source = torch.Generator().manual_seed(0)
    pixels, made = (torch.rand(1, 3, 2, 6, 6, generator=source) - 0.5 for _ in range(2))
    mask = torch.ones(1, 1, 2, 6, 6)
    mask[..., 1:5, 1:5] = 0
    given = [GivenPixels(pixels, 0, torch.ones(1), mask)]
    renewed = renew_known(coder, made, given)
    known = mask.bool().expand_as(made)
    if passes == 0:
        assert torch.equal(renewed, made)
        return
    torch.testing.assert_close(renewed[known], (1 - 0.2**passes) * pixels[known])
    hidden = ~cells_to_renew(mask, vae.strides).expand_as(made)
    assert hidden.any() and torch.equal(renewed[hidden], made[hidden]), "the inside stays as it was sampled"
    beside = ~known & ~hidden
    torch.testing.assert_close(renewed[beside], 0.8**passes * made[beside])
