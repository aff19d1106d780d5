"""The models that a recipe makes, untrained."""

from __future__ import annotations

from torch import nn

from vgen.training.model_sources import ModelSource, embedded_tokenizer
from vgen.training.objectives.flow.flow import build_transformer
from vgen.training.objectives.flow.text_encoder import build_text_encoder
from vgen.training.objectives.vae.vae import build_vae
from vgen.training.recipe import FlowObjectiveConfig, Recipe, VaeObjectiveConfig


def made_by(recipe: Recipe, models: ModelSource) -> dict[str, nn.Module]:
    """What will be in the export of a recipe, by the names of a pipeline's parts; nothing of a fine-tuned model.

    Args:
        recipe: of the run.
        models: where what it begins with comes from.
    """
    config = recipe.objective
    if isinstance(config, VaeObjectiveConfig):
        return {"vae": build_vae(config, recipe.seed, models)}
    if isinstance(config, FlowObjectiveConfig):
        vae = models.vae(config.vae)
        return {
            "vae": vae,
            "transformer": build_transformer(config, vae.config.latent_channels, recipe.seed, models),
            "text_encoder": build_text_encoder(config, len(embedded_tokenizer()), recipe.seed, models),
        }
    return {}
