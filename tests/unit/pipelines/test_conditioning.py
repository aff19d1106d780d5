"""Reading given pixels, and refusing what does not fit."""

import numpy as np
import PIL.Image
import pytest
import torch

from vgen.errors import RequestError, ShapeError
from vgen.pipelines.conditioning import VideoCondition, per_prompt, read_conditions, read_frames, read_mask
from vgen.types import Strides, VideoShape

SHAPE, STRIDES = VideoShape(17, 16, 24), Strides(4, 8, 8)


def _clip(frames=5, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (frames, 16, 24, 3), dtype=np.uint8)


def _read(*conditions, prompts=1, prefix=None):
    return read_conditions(list(conditions), SHAPE, STRIDES, prompts, prefix)


def test_all_kinds_of_frames_are_the_same_pixels():
    clip = _clip()
    pictures = [PIL.Image.fromarray(frame) for frame in clip]
    tensor = torch.from_numpy(clip).permute(0, 3, 1, 2).float() / 255
    expected = read_frames(clip)
    assert expected.shape == (5, 3, 16, 24)
    for kind in (pictures, tensor, tensor.double()):
        torch.testing.assert_close(read_frames(kind), expected, rtol=0, atol=1e-7)
    for single in (clip[2], pictures[2], tensor[2]):
        torch.testing.assert_close(read_frames(single), expected[2:3], rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    "frames",
    [
        "clip.mp4",
        [],
        [1, 2],
        np.zeros((5, 16, 24), np.uint8),
        np.zeros((5, 16, 24, 3)),
        torch.zeros(5, 16, 24, 3),
        torch.zeros(3, 16, 24).int(),
        torch.full((3, 16, 24), 2.0),
        torch.full((3, 16, 24), float("nan")),
    ],
)
def test_other_kinds_are_refused(frames):
    with pytest.raises(RequestError, match="frames"):
        read_frames(frames)


def test_pictures_of_several_sizes_are_refused():
    with pytest.raises(ShapeError, match="16x24, 8x8"):
        read_frames([PIL.Image.new("RGB", (24, 16)), PIL.Image.new("RGB", (8, 8))])


def test_masks():
    shape = VideoShape(5, 16, 24)
    flat = torch.zeros(16, 24)
    flat[:4] = 1
    expected = flat.expand(5, -1, -1)
    picture = PIL.Image.fromarray((flat.numpy() * 255).astype(np.uint8))
    for mask in (flat, flat.bool(), flat.numpy(), expected, picture):
        assert torch.equal(read_mask(mask, shape), expected)
    with pytest.raises(ShapeError, match=r"\(4, 16, 24\)"):
        read_mask(torch.zeros(4, 16, 24), shape)
    with pytest.raises(RequestError, match="0 to 255"):
        read_mask(np.array(picture), shape)


def test_a_condition_is_read():
    (given,) = _read(VideoCondition(_clip(), 8, 0.5, torch.ones(16, 24)))
    assert given.pixels.shape == (1, 3, 5, 16, 24)
    assert given.pixels.min() >= -1
    assert given.pixels.max() <= 1
    assert (given.frame_index, given.strength.tolist(), given.num_frames) == (8, [0.5], 5)
    assert given.mask.shape == (1, 1, 5, 16, 24)
    assert _read(VideoCondition(_clip(1), -1))[0].frame_index == 16


BAD = {
    "size": (VideoCondition(np.zeros((1, 8, 24, 3), np.uint8)), "8x24 and the clip 16x24"),
    "length": (VideoCondition(_clip(6)), "num_frames=6 .*use 5 or 9"),
    "index": (VideoCondition(_clip(1), 17), "use -17 to 16"),
    "negative index": (VideoCondition(_clip(1), -18), "use -17 to 16"),
    "past the end": (VideoCondition(_clip(5), 13), "start it at 12 or earlier"),
    "reference with a place": (VideoCondition(_clip(1), 4, reference=True), "leave frame_index out"),
    "reference of a clip": (VideoCondition(_clip(5), reference=True), "a reference is one image"),
    "strength": (VideoCondition(_clip(1), strength=1.5), "strength=1.5"),
    "not a number": (VideoCondition(_clip(1), strength=float("nan")), "strength=nan"),
    "kind": (_clip(1), "must be a VideoCondition"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_refused_with_what_would(case):
    condition, message = BAD[case]
    with pytest.raises(RequestError, match=message):
        _read(VideoCondition(_clip(1), 12, strength=0.0), condition)


def test_only_split_clips_need_a_multiple_of_the_stride():
    long, short = VideoCondition(_clip(9), 6), VideoCondition(_clip(5), 6)
    assert _read(long)[0].frame_index == 6
    assert _read(short, prefix=2)[0].frame_index == 6
    with pytest.raises(ShapeError, match=r"frame_index=6 .*use 4 or 8"):
        _read(long, prefix=2)


def test_hard_conditions_must_not_overlap():
    whole = VideoCondition(_clip(9))
    with pytest.raises(RequestError, match="frames 8 to 8"):
        _read(whole, VideoCondition(_clip(1), 8))
    assert len(_read(whole, VideoCondition(_clip(1), 9))) == 2
    assert len(_read(whole, VideoCondition(_clip(1), 8, 0.9))) == 2
    left, right = torch.zeros(16, 24), torch.ones(16, 24)
    left[:, :12] = 1
    right[:, :12] = 0
    assert len(_read(VideoCondition(_clip(9), mask=left), VideoCondition(_clip(5), 4, mask=right))) == 2
    with pytest.raises(RequestError, match="conditions\\[0\\] and conditions\\[1\\]"):
        _read(VideoCondition(_clip(9), mask=left), VideoCondition(_clip(5), 4, mask=left))


def test_conditions_of_each_prompt_are_joined():
    rows = [[VideoCondition(_clip(5, seed), strength=seed / 2)] for seed in (1, 2)]
    (given,) = _read(*rows, prompts=2)
    assert given.pixels.shape[0] == 2
    assert given.strength.tolist() == [0.5, 1.0]
    with pytest.raises(RequestError, match="2 for 3 prompts"):
        _read(*rows, prompts=3)
    with pytest.raises(RequestError, match="several lengths"):
        _read(rows[0], [], prompts=2)
    with pytest.raises(RequestError, match="differ between prompts"):
        _read(rows[0], [VideoCondition(_clip(1))], prompts=2)


def test_one_for_all_or_one_a_prompt():
    clip = _clip(3)
    assert len(per_prompt(clip[0], 3, "image")) == 1
    assert len(per_prompt(clip, 3, "image")) == 3
    assert len(per_prompt(list(clip), 3, "image")) == 3
    with pytest.raises(RequestError, match="image holds 3 images for 2 prompts"):
        per_prompt(clip, 2, "image")
