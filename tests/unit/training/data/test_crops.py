"""Crops round the objects, restarts of the learning rate, and weights rearranged between stages."""

from __future__ import annotations

import pytest
import torch

from vgen.training.config.data import SpritesConfig
from vgen.training.config.run import ScheduleConfig
from vgen.training.data.clips import SpriteClips, crop_to_objects
from vgen.training.ema import Ema
from vgen.training.objectives.vae.config import VaeObjectiveConfig
from vgen.training.objectives.vae.vae import VaeObjective
from vgen.training.optimizers import learning_rate_factor


def test_every_crop_holds_a_part_of_the_object_and_matches_its_mask() -> None:
    batch = SpriteClips(SpritesConfig(tier=[1, 2])).stack(list(range(24)), 5)
    cropped = crop_to_objects(batch, 32, torch.Generator().manual_seed(0))
    assert cropped["frames"].shape == (24, 5, 32, 32, 3)
    for original, mask, frames, small in zip(
        batch["frames"], batch["masks"], cropped["frames"], cropped["masks"], strict=True
    ):
        assert small.any() or not mask.any()
        windows = original.unfold(1, 32, 1).unfold(2, 32, 1)  # [F, tops, lefts, 3, 32, 32]
        found = (windows.permute(1, 2, 0, 4, 5, 3) == frames).flatten(2).all(-1)
        masked = (mask.unfold(1, 32, 1).unfold(2, 32, 1).permute(1, 2, 0, 3, 4) == small).flatten(2).all(-1)
        assert (found & masked).any()


def test_crops_are_a_function_of_the_generator() -> None:
    batch = SpriteClips(SpritesConfig()).stack([3, 4], 1)
    first, again, other = (
        crop_to_objects(batch, 24, torch.Generator().manual_seed(seed))["frames"] for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_restart_begins_the_schedule_anew() -> None:
    config = ScheduleConfig(name="cosine", warmup_steps=2, final_ratio=0.1, restarts=[10])
    alone = [
        learning_rate_factor(step, 10, ScheduleConfig(name="cosine", warmup_steps=2, final_ratio=0.1))
        for step in range(10)
    ]
    both = [learning_rate_factor(step, 20, config) for step in range(20)]
    assert both == pytest.approx(alone + alone)
    assert min(alone) < 0.2 < max(alone)


def test_the_average_is_inflated_before_the_named_step_and_no_other() -> None:
    config = VaeObjectiveConfig(
        kind="vae",
        inflate_before=3,
        model={
            "latent_channels": 4,
            "block_out_channels": [8, 8],
            "layers_per_block": [1, 1],
            "down_block_types": ["LTXVideo095DownBlock3D"],
            "downsample_type": ["spatiotemporal"],
            "spatio_temporal_scaling": [True],
            "decoder_block_out_channels": [8],
            "decoder_layers_per_block": [1, 1],
            "decoder_spatio_temporal_scaling": [True],
            "decoder_inject_noise": [False, False],
            "upsample_residual": [False],
            "upsample_factor": [1],
        },
    )
    clips = SpriteClips(SpritesConfig())
    objective = VaeObjective(config, clips, clips, seed=0)
    ema = Ema(objective)
    kernel = objective.vae.encoder.conv_in.conv.weight
    with torch.no_grad():
        kernel.add_(1.0)  # what is trained runs ahead of the average
    before = kernel.clone()
    objective.before_step(2, ema)
    assert torch.equal(kernel, before)
    objective.before_step(3, ema)
    torch.testing.assert_close(kernel[:, :, -1], (before - 1.0).sum(dim=2))
    assert not kernel[:, :, :-1].any()
    assert torch.equal(ema.average["vae.encoder.conv_in.conv.weight"], kernel)
