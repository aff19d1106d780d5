"""An objective in one file: the mean colour of SpriteWorld's clips. See test_one_file.py."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor, nn

from vgen.training.config.data import SpritesConfig
from vgen.training.control import Control
from vgen.training.data.clips import SpriteClips, to_pixels
from vgen.training.data.plan import Batch
from vgen.training.objectives.base import Objective
from vgen.training.objectives.registry import ObjectiveConfig, Setup, builds, data_of
from vgen.training.randomness import Keys


class MeanColourConfig(ObjectiveConfig):
    """The mean colour, from black on; `noise` is added to what is learned from."""

    kind: Literal["mean_colour"]
    noise: float = Field(default=0.0, ge=0)


class MeanColour(Objective):
    """Mean squared error of one colour."""

    def __init__(self, config: MeanColourConfig) -> None:
        super().__init__()
        self.config = config
        self.colour = nn.Parameter(-torch.ones(3))

    def loss(self, batch: Batch, keys: Keys) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of one micro-batch of clips."""
        video = to_pixels(batch["frames"])
        noisy = video + self.config.noise * keys.normal("noise", video.shape).to(video)
        return (noisy - self.colour[:, None, None, None]).square().mean(), {"red": self.colour[0].detach()}

    def validate(self, step: int, folder: Path, control: Control) -> dict[str, float]:
        """The present colour's blue."""
        return {"blue": float(self.colour[2])}

    def finish(self, folder: Path, dtype: torch.dtype, control: Control) -> dict[str, float]:
        """Save the colour."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"colour": self.colour.detach().to(dtype)}, folder / "colour.safetensors")
        return {"red": float(self.colour[0].detach())}


@builds(MeanColourConfig)
def build(config: MeanColourConfig, setup: Setup) -> tuple[MeanColour, SpriteClips]:
    """The objective and its clips."""
    return MeanColour(config), SpriteClips(data_of(config, setup.run, SpritesConfig))
