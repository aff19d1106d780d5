"""Rendered clips as batches, and crops round the objects."""

from __future__ import annotations

import torch

from vgen.training.config.data import SpritesConfig
from vgen.training.data.clips import SpriteClips, crop_to_objects
from vgen.training.data.plan import Draw
from vgen.training.randomness import Keys, generator

CLIPS = SpriteClips(SpritesConfig(tier=1))


def test_a_draw_is_rendered_by_index() -> None:
    batch = CLIPS.load(Draw(Keys(0, 0), 5, [3, 7]))
    assert batch["frames"].shape == (2, 5, 64, 64, 3)
    assert batch["frames"].dtype == torch.uint8
    assert batch["masks"].shape == (2, 5, 64, 64)
    assert torch.equal(batch["frames"][1], torch.from_numpy(CLIPS.world.sample(7, 5).frames))
    assert batch["indices"].tolist() == [3, 7]


def test_crops_hold_the_object_and_keep_frames_and_masks_together() -> None:
    batch = CLIPS.stack(list(range(12)), 5)
    cropped = crop_to_objects(batch, 32, generator(0, "crop"))
    assert cropped["frames"].shape == (12, 5, 32, 32, 3)
    assert cropped["masks"].flatten(1).any(dim=1).all()
    again = crop_to_objects(batch, 32, generator(0, "crop"))
    assert torch.equal(cropped["frames"], again["frames"])
    for clip in range(12):
        windows = batch["frames"][clip].unfold(1, 32, 1).unfold(2, 32, 1)  # [F, rows, columns, 3, 32, 32]
        wanted = cropped["frames"][clip].permute(0, 3, 1, 2)[:, None, None]
        assert (windows == wanted).all(dim=0).flatten(2).all(dim=2).any()


def test_a_crop_of_the_whole_clip_is_the_clip() -> None:
    batch = CLIPS.stack([0], 5)
    assert torch.equal(crop_to_objects(batch, 64, generator(0, "crop"))["frames"], batch["frames"])


def test_the_fingerprint_follows_what_is_rendered() -> None:
    same = SpriteClips(SpritesConfig(tier=1))
    other = SpriteClips(SpritesConfig(tier=1, height=32, width=32))
    assert same.fingerprint == CLIPS.fingerprint
    assert other.fingerprint != CLIPS.fingerprint


def test_emphasis_is_for_training_clips() -> None:
    emphasised = SpritesConfig(tier=2, emphasis={"circle": 3})
    plain = SpritesConfig(tier=2)
    assert SpriteClips(emphasised).fingerprint != SpriteClips(plain).fingerprint
    assert SpriteClips(emphasised, "validation").fingerprint == SpriteClips(plain, "validation").fingerprint
