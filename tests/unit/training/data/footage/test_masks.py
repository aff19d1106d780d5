"""Masks next to footage: of every kind that is read, alpha counts, and none is silently left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vgen.errors import MediaError
from vgen.io.media.video import write_video
from vgen.training.data.footage.buckets import Bucket, Sample
from vgen.training.data.footage.files import mask_of
from vgen.training.data.footage.pixels import read_mask
from vgen.training.data.footage.records import Clip


def _clip(folder: Path) -> Clip:
    (folder / "cat.mp4").touch()
    return Clip("cat", str(folder / "cat.mp4"), "0" * 64, "video", 0, 9, 8.0, (0, 0, 64, 64))


def _sample() -> Sample:
    return Sample("key", "cat", ".", Bucket(5, 64, 64, 8.0), tuple(range(2, 7)))


def _left_half() -> np.ndarray:
    """[64, 64, 4]: white all over, and opaque on the left."""
    rgba = np.full((64, 64, 4), 255, np.uint8)
    rgba[:, 32:, 3] = 0
    return rgba


@pytest.mark.parametrize("ending", [".png", ".PNG", ".webp", ".tiff", ".gif", ".mp4", ".webm", ".mkv", ".mov"])
def test_every_ending_is_a_mask_and_alpha_counts(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"cat.mask{ending}"
    if ending in (".mp4", ".webm", ".mkv", ".mov"):
        white = _left_half()[None, ..., 3:].repeat(9, axis=0).repeat(3, axis=-1)
        write_video(tmp_path / f"a{'.mp4' if ending in ('.mp4', '.mov') else '.webm'}", white, 8.0).rename(path)
    else:
        options = {"lossless": True, "exact": True} if ending == ".webp" else {}
        Image.fromarray(_left_half()).save(path, **options)
    clip = _clip(tmp_path)
    assert mask_of(Path(clip.source)) == path
    mask = read_mask(path, clip, _sample())
    assert mask.shape == (5, 64, 64) and mask.dtype == np.float32
    assert mask[..., :30].min() > 0.95 and mask[..., 34:].max() < 0.05


def test_a_mask_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    clip = _clip(tmp_path)
    assert mask_of(Path(clip.source)) is None
    (tmp_path / "cat.mask.psd").touch()
    with pytest.raises(MediaError, match=r"cat\.mask\.psd is not a mask that can be read: .*\.png"):
        mask_of(Path(clip.source))
    for name in ("cat.mask.png", "cat.mask.gif"):
        Image.fromarray(_left_half()).save(tmp_path / name)
    with pytest.raises(MediaError, match=r"several masks: cat\.mask\.gif, cat\.mask\.png"):
        mask_of(Path(clip.source))


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (Image.new("RGBA", (64, 64), (255, 255, 255, 0)), "has no white place"),
        (Image.new("L", (32, 64), 255), "it must be as large as"),
    ],
    ids=["clear", "narrow"],
)
def test_masks_that_do_not_fit(tmp_path: Path, picture: Image.Image, message: str) -> None:
    picture.save(tmp_path / "cat.mask.png")
    with pytest.raises(MediaError, match=message):
        read_mask(tmp_path / "cat.mask.png", _clip(tmp_path), _sample())


def test_a_mask_that_ends_before_its_clip(tmp_path: Path) -> None:
    path = write_video(tmp_path / "cat.mask.mp4", np.full((6, 64, 64, 3), 255, np.uint8), 8.0)
    with pytest.raises(MediaError, match=r"has 6 frames, and frame 6 of .*cat\.mp4 is used"):
        read_mask(path, _clip(tmp_path), _sample())
