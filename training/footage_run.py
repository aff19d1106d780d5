"""Runs on footage: from a recipe to its objective and source."""

from __future__ import annotations

import os

import torch

from vgen.errors import CheckpointError, RequestError
from vgen.pipelines.loading.model_files import ModelParts
from vgen.pipelines.text_to_video import TextToVideoPipeline
from vgen.request.trained import widened
from vgen.training.config.data import FootageConfig
from vgen.training.data.footage.cache import CacheIndex, text_cache
from vgen.training.data.footage.pixel_source import FootageClips
from vgen.training.data.footage.source import CaptionEncoding, FootageLatents
from vgen.training.data.plan import BatchPlan, Source
from vgen.training.model_sources import LOADED, ModelSource
from vgen.training.objectives.base import Objective
from vgen.training.objectives.flow.finetune import FineTuneObjective
from vgen.training.objectives.vae.vae import VaeObjective
from vgen.training.recipe import FineTuneObjectiveConfig, Recipe, VaeObjectiveConfig
from vgen.types import VideoShape


def build_on_footage(recipe: Recipe, models: ModelSource = LOADED) -> tuple[Objective, Source]:
    """The objective and the source of a recipe whose data is footage.

    Raises:
        RequestError: the objective does not go with the data, or the cache is not complete.
        CheckpointError: the cache is of another VAE than the model's.
    """
    config, data = recipe.objective, recipe.data
    if isinstance(config, VaeObjectiveConfig) and isinstance(data, FootageConfig):
        clips = FootageClips(CacheIndex.open(data.index_file), data.weights)
        return VaeObjective(config, clips, clips, recipe.seed, models), clips
    if not isinstance(config, FineTuneObjectiveConfig) or not isinstance(data, FootageConfig):
        raise RequestError(f"objective.kind={config.kind} and data.kind={data.kind} do not go together.")
    index = CacheIndex.open(data.index_file)
    parts = ModelParts.find(config.model, index.text_encoder)
    if parts.vae_hash != index.vae_hash:
        raise CheckpointError(f"{data.index_file} was made with another VAE than that of {config.model}: cache again.")
    source = footage_source(data, index, parts, config.text_drop)
    if config.offload:
        _check_offload(recipe)
    pipeline = load_pipeline(recipe, parts, source, models)
    plan = BatchPlan(recipe.stages, recipe.seed)
    objective = FineTuneObjective(config, source, pipeline, plan, recipe.seed, training_device(recipe))
    objective.origin = parts.identity
    return objective, source


def training_device(recipe: Recipe) -> torch.device:
    """Where a run of one process trains."""
    cpu = recipe.device == "cpu" or (recipe.device == "auto" and not torch.accelerator.is_available())
    return torch.device("cpu") if cpu else torch.accelerator.current_accelerator() or torch.device("cpu")


def _check_offload(recipe: Recipe) -> None:
    """Refuse what block offload cannot be combined with: weights that others copy or divide."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if recipe.sharding != "none" or processes > 1:
        raise RequestError(
            f"objective.offload=true works in one process, and this run has {processes} with sharding="
            f"{recipe.sharding}: leave offload out there; sharding=fsdp divides the weights among the processes."
        )


def footage_source(data: FootageConfig, index: CacheIndex, parts: ModelParts, text_drop: float) -> FootageLatents:
    """The samples of a cache with their captions."""
    device = index.text_device if index.text_device == "cpu" or torch.accelerator.is_available() else "cpu"
    text = parts.text(text_cache(index.data))
    encoding = CaptionEncoding(text, index.max_sequence_length, parts.convention.mask_text_encoder, device)
    return FootageLatents(data, index, encoding, text_drop)


def load_pipeline(
    recipe: Recipe, parts: ModelParts, source: FootageLatents, models: ModelSource = LOADED
) -> TextToVideoPipeline:
    """The model, its text encoder left out: captions are in the cache. It states that it was trained on them, too."""
    config = recipe.objective
    assert isinstance(config, FineTuneObjectiveConfig)
    narrow = recipe.mixed_precision == "bf16" and config.mode == "lora"
    pipeline = models.pipeline(
        config.model,
        torch_dtype=torch.bfloat16 if narrow else torch.float32,
        text_encoder_folder=parts.text_encoder_folder,
        text_cache=text_cache(source.index.data),
    )
    pipeline.vae.float().requires_grad_(False)
    pipeline.set_progress_bar_config(disable=True)
    shapes = {VideoShape(*sample.bucket[:3]) for sample in source.samples}
    pipeline.register_to_config(trained=widened(pipeline.config.trained, shapes))
    return pipeline
