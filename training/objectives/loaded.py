"""A finished model that an objective starts from, with all that is not trained frozen."""

from __future__ import annotations

from pathlib import Path

import torch

from vgen.errors import RequestError
from vgen.hub.find import resolve_model
from vgen.pipelines import TextToVideoPipeline
from vgen.training.objectives.registry import Setup


def load_frozen(setup: Setup, key: str, name: str) -> tuple[TextToVideoPipeline, Path]:
    """A pipeline in float32, its VAE and text encoder frozen, and its folder.

    Args:
        setup: says where models come from, and the device.
        key: of the recipe.
        name: of the model.
    Raises:
        RequestError: it has no text encoder, or it is distilled.
    """
    place = resolve_model(name)
    pipeline = setup.models.pipeline(str(place), torch_dtype=torch.float32, device=setup.device)
    pipeline.set_progress_bar_config(disable=True)
    if pipeline.config.defaults.get("distilled"):
        raise RequestError(f"{key}={name!r} is distilled: it knows no other sigmas; give the model that it came from.")
    if pipeline.text_encoder is None:
        raise RequestError(f"{key}={name!r} has no text encoder: give a folder with text_encoder/.")
    pipeline.vae.requires_grad_(False)
    pipeline.text_encoder.requires_grad_(False)
    return pipeline, place
