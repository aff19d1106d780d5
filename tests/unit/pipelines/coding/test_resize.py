"""Given pixels at another size."""

import numpy as np
import pytest
import torch

from vgen.diffusion.conditions import REFERENCE_FRAME
from vgen.errors import RequestError, ShapeError
from vgen.pipelines.coding.given_pixels import GivenPixels
from vgen.pipelines.coding.resize import resize_conditions, resize_given, resize_mask, resize_video
from vgen.types import Strides, VideoShape


@pytest.mark.parametrize("size", [(24, 24), (32, 24), (64, 56), (48, 40), (49, 41)])
def test_what_stays_given_depends_on_no_hidden_pixel(size):
    """Exhaustive: a bilinear resize of the hidden pixels' indicator is 0 wherever the mask says given."""
    masks = torch.from_numpy(np.random.default_rng(0).random((1, 1, 20, 48, 40)) > 0.05).float()
    resized = resize_mask(masks, *size)
    mixed_in = resize_video(1 - masks, *size)
    assert resized.shape == (1, 1, 20, *size)
    assert mixed_in[resized == 1].abs().max() == 0
    assert 0.1 < resized.mean() <= masks.mean()


def test_hidden_pixels_are_not_mixed_in():
    pixels = torch.rand(1, 3, 5, 48, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mask = torch.ones(1, 1, 5, 48, 40)
    mask[..., 10:20, 10:20] = 0
    other = torch.where(mask.bool(), pixels, -pixels)
    shape, half = VideoShape(9, 24, 24), torch.tensor([0.5])
    first, second = (resize_given(GivenPixels(each, 4, half, mask), shape) for each in (pixels, other))
    assert torch.equal(first.pixels, second.pixels)
    assert (first.frame_index, float(first.strength)) == (4, 0.5)
    assert (first.pixels.shape, first.mask.shape) == ((1, 3, 5, 24, 24), (1, 1, 5, 24, 24))


def test_every_second_frame_of_each_prompt():
    ramp = (torch.arange(9) / 9).view(1, 1, 9, 1, 1).expand(2, 3, 9, 48, 40)
    last, reference = (GivenPixels(ramp[:, :, :1], start, torch.ones(2)) for start in (8, REFERENCE_FRAME))
    given = [GivenPixels(ramp, 0, torch.ones(2)), last, reference]
    shape, strides = VideoShape(5, 24, 24), Strides(4, 8, 8)
    whole, *ends = resize_conditions(given, shape, strides, None, every=2)
    assert whole.pixels.shape == (2, 3, 5, 24, 24)
    torch.testing.assert_close(whole.pixels[1, 0, :, 0, 0], torch.arange(0, 9, 2) / 9)
    assert [entry.frame_index for entry in ends] == [4, REFERENCE_FRAME]
    for entry, error, message in (
        (GivenPixels(ramp[:, :, :1], 5, torch.ones(2)), RequestError, "frame_index=5 falls between .* use 4 or 6"),
        (GivenPixels(ramp[:, :, :5], 0, torch.ones(2)), ShapeError, r"conditions\[0\]\.frames: num_frames=3"),
    ):
        with pytest.raises(error, match=message):
            resize_conditions([entry], shape, strides, None, every=2)
