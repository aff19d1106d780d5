"""Reading given pixels, and refusing what does not fit."""

import numpy as np
import PIL.Image
import pytest
import torch

from vgen.errors import RequestError, ShapeError
from vgen.io.media.images import as_rgb, fit_image
from vgen.io.media.masks import mask_values
from vgen.pipelines.base import VideoPipelineOutput
from vgen.pipelines.coding.given_pixels import VideoCondition, per_prompt, read_conditions
from vgen.pipelines.coding.pixels import read_frames, read_mask
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
    floats = clip / np.float32(255)
    whole = (pictures, tensor, tensor.double(), floats, floats.astype(float), list(clip), list(floats), list(tensor))
    for kind in (*whole, (tensor * 255).to(torch.uint8), [clip[0], *pictures[1:]]):
        torch.testing.assert_close(read_frames(kind), expected, rtol=0, atol=1e-7)
    for single in (clip[2], pictures[2], tensor[2], floats[2], clip[::-1][2]):
        torch.testing.assert_close(read_frames(single), expected[2:3], rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    "frames",
    [
        "clip.mp4",
        [],
        [1, 2],
        np.zeros((5, 16, 24), np.uint8),
        np.full((5, 16, 24, 3), 1.5),
        np.zeros((5, 16, 24, 3), bool),
        torch.zeros(5, 16, 24, 3),
        torch.zeros(3, 16, 24).int(),
        torch.full((3, 16, 24), 2.0),
        torch.full((3, 16, 24), float("nan")),
    ],
)
def test_other_kinds_are_refused(frames):
    with pytest.raises(RequestError, match="frames"):
        read_frames(frames)


@pytest.mark.parametrize("make", [lambda c: c, lambda c: c / 255.0, lambda c: torch.from_numpy(c).movedim(-1, 2) / 255])
def test_a_batch_is_refused_with_the_way_to_index(make):
    batch = make(_clip(10).reshape(2, 5, 16, 24, 3))
    assert len(read_frames(batch[0])) == 5
    for one in (batch, list(batch), [list(batch[0]), list(batch[1])]):
        with pytest.raises(RequestError, match=r"2 clips: give one of them, as frames\[0\]"):
            read_frames(one)
    with pytest.raises(RequestError, match=r"\.frames is what a pipeline returned: .*frames\.frames\[0\]"):
        _read(VideoCondition(VideoPipelineOutput(frames=batch)))


def test_floats_out_of_range_say_what_to_do():
    clip = _clip().astype(np.float32)
    with pytest.raises(RequestError, match=r"values from 0 to 255: .* Divide by 255, or give uint8"):
        read_frames(clip)
    with pytest.raises(RequestError, match=r"values from -1 to 1: .* Add 1 and halve them"):
        read_frames(clip / 127.5 - 1)
    assert read_frames(np.float32([[[-5e-5, 0, 1 + 5e-5]]])).flatten().tolist() == [0, 0, 1]


def test_pictures_of_every_mode_are_read_as_files_are():
    """16-bit grey, transparency, a palette, turned by EXIF: what `as_rgb` says, alone and in a list."""
    grey = PIL.Image.fromarray(np.linspace(0, 65535, 16 * 24).reshape(16, 24).astype(np.uint16))
    clear = PIL.Image.new("RGBA", (24, 16), (255, 0, 0, 0))
    palette = PIL.Image.new("P", (24, 16), 0)
    palette.putpalette([255, 0, 0])
    palette.info["transparency"] = 0
    turned = PIL.Image.fromarray(_clip(1)[0].swapaxes(0, 1))
    turned.getexif()[0x0112] = 6
    for picture in (grey, clear, palette, turned):
        expected = torch.from_numpy(np.array(as_rgb(picture))).permute(2, 0, 1) / 255
        assert torch.equal(read_frames(picture)[0], expected)
        assert torch.equal(read_frames([picture, clear])[0], expected)
        assert expected.shape == (3, 16, 24)
    assert 0.4 < read_frames(grey).mean() < 0.6 and read_frames(clear).min() == read_frames(palette).min() == 1
    with pytest.raises(RequestError, match=r"conditions\[0\]\.frames has floating-point pixels"):
        _read(VideoCondition(PIL.Image.new("F", (24, 16))))


@pytest.mark.parametrize("fit", ["cover", "contain", "stretch"])
def test_pixels_and_masks_of_another_size_are_fitted_as_the_commands_do(fit):
    clip = np.random.default_rng(0).integers(0, 256, (5, 40, 40, 3), dtype=np.uint8)
    (given,) = _read(VideoCondition(clip, fit=fit))
    pictures = [np.array(fit_image(PIL.Image.fromarray(frame), 16, 24, fit)) for frame in clip]
    expected = torch.from_numpy(np.stack(pictures)).permute(3, 0, 1, 2)[None] / 127.5 - 1
    torch.testing.assert_close(given.pixels, expected, rtol=0, atol=1e-6)
    for kind in (clip / 255.0, [PIL.Image.fromarray(frame) for frame in clip], torch.from_numpy(clip).movedim(-1, 1)):
        assert torch.equal(_read(VideoCondition(kind, fit=fit))[0].pixels, given.pixels)
    left = np.zeros((40, 40), bool)
    left[:, :20] = True
    mask = _read(VideoCondition(clip, mask=left, fit=fit))[0].mask
    assert mask.shape == (1, 1, 5, 16, 24)
    assert mask[..., 4:9].min() == 1, "the left half is given"
    assert mask[..., 15:20].max() == 0, "the right half is not"
    assert (mask[..., 20:].min() == 1) == (fit == "contain"), "and what is added is"


def test_without_fit_another_size_is_refused_and_fit_is_named():
    clip = np.zeros((1, 8, 24, 3), np.uint8)
    with pytest.raises(ShapeError, match=r"8x24 and the clip 16x24 .*pass fit='cover' \(or 'contain', 'stretch'\)"):
        _read(VideoCondition(clip))
    with pytest.raises(RequestError, match="fit='crop' must be one of 'cover', 'contain', 'stretch'"):
        _read(VideoCondition(_clip(1), fit="crop"))


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
    layer = np.zeros((16, 24, 4), np.uint8)
    layer[:4] = 255
    layer[4:] = (255, 255, 255, 0)
    on_clear = PIL.Image.fromarray(layer)
    assert torch.equal(read_mask(on_clear, shape), expected), "white that is transparent is not given"
    assert torch.equal(read_mask([on_clear, *[picture] * 4], shape), expected)
    assert mask_values(on_clear)[:4].min() == 1
    with pytest.raises(RequestError, match="mask is a str: it must be a picture"):
        read_mask("mask.png", shape)
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
    "text for a number": (VideoCondition(_clip(1), strength="1"), "strength='1' must be a number"),
    "half a frame": (VideoCondition(_clip(1), 1.5), "frame_index=1.5 must be a whole number"),
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
