"""Given pixels at another size."""

import numpy as np
import pytest
import torch

from vgen.pipelines.coding.given_pixels import VideoCondition
from vgen.pipelines.coding.resize import resize_conditions, resize_frames, resize_mask
from vgen.types import VideoShape

TARGET = VideoShape(9, 48, 40)


@pytest.mark.parametrize("size", [(24, 24), (32, 24), (64, 56), (48, 40), (49, 41)])
def test_what_stays_given_depends_on_no_hidden_pixel(size):
    """Exhaustive: a bilinear resize of the hidden pixels' indicator is 0 wherever the mask says given."""
    masks = torch.from_numpy(np.random.default_rng(0).random((20, 48, 40)) > 0.05).float()
    resized = resize_mask(masks, *size)
    mixed_in = resize_frames((1 - masks)[:, None], *size)[:, 0]
    assert resized.shape == (20, *size)
    assert mixed_in[resized == 1].abs().max() == 0
    assert 0.1 < resized.mean() <= masks.mean()


def test_hidden_pixels_are_not_mixed_in():
    frames = torch.rand(5, 3, 48, 40, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(48, 40)
    mask[10:20, 10:20] = 0
    other = torch.where(mask.bool(), frames, 1 - frames)
    shape = VideoShape(9, 24, 24)
    first, second = (
        resize_conditions([VideoCondition(each, 4, 0.5, mask)], TARGET, shape)[0] for each in (frames, other)
    )
    assert torch.equal(first.frames, second.frames)
    assert (first.frame_index, first.strength) == (4, 0.5)
    assert (first.frames.shape, first.mask.shape) == ((5, 3, 24, 24), (5, 24, 24))


def test_nesting_and_time():
    clip = torch.arange(9).view(9, 1, 1, 1).expand(9, 3, 48, 40) / 9
    ((one,), (two,)) = resize_conditions(
        [[VideoCondition(clip)], [VideoCondition(clip[0], -1)]], TARGET, VideoShape(5, 24, 24), every=2
    )
    assert one.frames.shape == (5, 3, 24, 24)
    torch.testing.assert_close(one.frames[:, 0, 0, 0], torch.arange(0, 9, 2) / 9)
    assert two.frame_index == 4
