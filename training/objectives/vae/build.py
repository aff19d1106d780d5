"""From a recipe to a VAE in training, on clips of SpriteWorld or of footage."""

from __future__ import annotations

from vgen.training.config.data import FootageConfig
from vgen.training.data.clips import SpriteClips
from vgen.training.data.footage.cache import CacheIndex
from vgen.training.data.footage.pixel_source import FootageClips
from vgen.training.objectives.registry import Setup, builds
from vgen.training.objectives.vae.config import VaeObjectiveConfig
from vgen.training.objectives.vae.vae import VaeObjective


@builds(VaeObjectiveConfig)
def build(config: VaeObjectiveConfig, setup: Setup) -> tuple[VaeObjective, SpriteClips | FootageClips]:
    """A fresh VAE, or that of `init`."""
    data, seed, models = setup.run.data, setup.run.seed, setup.models
    if isinstance(data, FootageConfig):
        footage = FootageClips(CacheIndex.open(data.index_file), data.weights)
        return VaeObjective(config, footage, footage, seed, models), footage
    clips, held_out = SpriteClips(data, "train"), SpriteClips(data, "validation")
    return VaeObjective(config, clips, held_out, seed, models), clips
