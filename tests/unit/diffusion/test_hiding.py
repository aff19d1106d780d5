"""Hidden pixels: they reach nothing, and what stands in for them goes on from what is given."""

import pytest
import torch

from vgen.diffusion.hiding import HIDDEN_PIXEL, hide_pixels


@pytest.mark.parametrize("size", [(16, 16), (24, 40), (7, 13)])
def test_hidden_pixels_reach_nothing(size):
    mask = torch.ones(1, 1, 5, *size)
    mask[..., 4:9, :8] = 0
    video = torch.rand(1, 3, 5, *size)
    other = torch.where(mask > 0, video, torch.full_like(video, float("nan")))
    hidden = hide_pixels(video, mask)
    assert torch.equal(hidden, hide_pixels(other, mask))
    assert torch.equal(torch.where(mask > 0, hidden, 0), torch.where(mask > 0, video, 0))
    assert torch.equal(hide_pixels(video, torch.ones_like(mask)), video)


def test_a_plain_picture_goes_on_in_its_hole():
    video = torch.tensor([0.5, -0.25, 0.75]).view(1, 3, 1, 1, 1).expand(2, 3, 5, 20, 28)
    mask = torch.ones(2, 1, 5, 20, 28)
    mask[0, :, :, 3:17, 5:20] = 0
    mask[1, :, :, :, 9:] = 0
    torch.testing.assert_close(hide_pixels(video, mask), video)


def test_a_slope_goes_on_roughly():
    video = torch.linspace(-1, 1, 32).expand(1, 3, 1, 32, 32)
    mask = torch.ones(1, 1, 1, 32, 32)
    mask[..., 8:24, 8:24] = 0
    assert (hide_pixels(video, mask) - video).abs().max() < 0.25 < (video[..., 8:24, 8:24] - HIDDEN_PIXEL).abs().max()


def test_a_frame_of_which_nothing_is_given_is_grey():
    mask = torch.zeros(1, 1, 2, 8, 8)
    mask[:, :, 1] = 1
    video = torch.rand(1, 3, 2, 8, 8)
    hidden = hide_pixels(video, mask)
    assert (hidden[:, :, 0] == HIDDEN_PIXEL).all() and torch.equal(hidden[:, :, 1], video[:, :, 1])


def test_between_given_and_hidden_the_two_are_mixed():
    video = torch.full((1, 3, 1, 8, 8), 0.8)
    video[..., 4:] = -0.8
    mask = torch.ones(1, 1, 1, 8, 8)
    mask[..., 4:] = 0.25
    hidden = hide_pixels(video, mask)
    assert (hidden[..., :4] == 0.8).all() and ((hidden[..., 4] > -0.8) & (hidden[..., 4] < 0.8)).all()
