"""Which cells are encoded again after sampling."""

from __future__ import annotations

import torch

from vgen.pipelines.renewing import cells_to_renew
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
