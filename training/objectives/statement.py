"""What a model that was trained on SpriteWorld states about its training, see `vgen.request.trained`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import torch

from vgen.models import CausalVideoVAE
from vgen.pipelines.call.untrained import kept_psnr
from vgen.training.config.data import SpritesConfig
from vgen.training.data.sprites import SpriteWorld
from vgen.training.data.sprites.vocabulary import vocabulary, world

_PICTURES: Final = 64
_MARGIN: Final = 4.0
"""dB below the worst of a few pictures that the model's own world never falls, and photographs do."""


def sprites_statement(data: SpritesConfig, lengths: Iterable[int], vae: CausalVideoVAE) -> dict[str, Any]:
    """The statement of a text-to-video model.

    Args:
        data: of its recipe.
        lengths: numbers of frames that it was trained on.
        vae: its own; judged by pictures of the validation split.
    """
    tiers = (data.tier,) if isinstance(data.tier, int) else tuple(sorted(set(data.tier)))
    frames = sorted(lengths)
    return {
        "height": [data.height, data.height],
        "width": [data.width, data.width],
        "num_frames": [frames[0], frames[-1]],
        "words": " ".join(vocabulary(tiers)),
        "world": world(tiers),
        "reconstruction_psnr": usual_psnr(data, tiers, vae),
    }


def usual_psnr(data: SpritesConfig, tiers: tuple[int, ...], vae: CausalVideoVAE) -> float:
    """dB that the VAE keeps of any picture of this world, with a margin."""
    found = []
    for place in range(_PICTURES):
        scene = SpriteWorld("validation", tiers[place % len(tiers)], 1, data.height, data.width)
        picture = torch.from_numpy(scene.sample(place).frames).permute(3, 0, 1, 2)[None]
        found.append(kept_psnr(vae, picture.to(vae.device) / 127.5 - 1))
    return round(min(found) - _MARGIN, 1)
