"""From a recipe to a flow: its models, its cache and the source of its batches."""

from __future__ import annotations

import copy
import os
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from vgen.engine.memory.offload import offload_blocks
from vgen.engine.speed.compile import compile_blocks
from vgen.errors import CheckpointError, RequestError
from vgen.io.files import part_of
from vgen.models import VideoDiT
from vgen.pipelines.loading.model_files import ModelParts
from vgen.pipelines.text_to_video import TextToVideoPipeline
from vgen.request.trained import widened
from vgen.training.config.data import FootageConfig, SpritesConfig
from vgen.training.config.run import RunConfig
from vgen.training.data.captioned import CaptionedLatents
from vgen.training.data.clips import SpriteClips
from vgen.training.data.footage.cache import CacheIndex, text_cache
from vgen.training.data.footage.source import CaptionEncoding, FootageLatents
from vgen.training.data.latents import LatentCache
from vgen.training.data.plan import BatchPlan
from vgen.training.data.tokenizer import sprite_tokenizer
from vgen.training.model_sources import LOADED, ModelSource, embedded_tokenizer
from vgen.training.objectives.explicit_attention import use_explicit_attention
from vgen.training.objectives.export import save_pipeline
from vgen.training.objectives.flow.config import FineTuneObjectiveConfig, FlowObjectiveConfig
from vgen.training.objectives.flow.flow import FlowObjective
from vgen.training.objectives.flow.material import FootageMaterial, SpriteMaterial
from vgen.training.objectives.flow.text_encoder import build_text_encoder
from vgen.training.objectives.lora import ADAPTER, add_lora, quantize_blocks
from vgen.training.objectives.registry import Setup, builds, data_of
from vgen.training.objectives.statement import sprites_statement
from vgen.training.randomness import generator, key_number
from vgen.types import VideoShape


@builds(FlowObjectiveConfig)
def build_flow(config: FlowObjectiveConfig, setup: Setup) -> tuple[FlowObjective, CaptionedLatents]:
    """A transformer and a text encoder from nothing, or from `init`, on clips of SpriteWorld."""
    run, models = setup.run, setup.models
    data = data_of(config, run, SpritesConfig)
    clips, held_out = SpriteClips(data, "train"), SpriteClips(data, "validation")
    vae = models.vae(config.vae).eval().requires_grad_(False)
    encoder = models.encoder_hash(vae, config.vae)
    models.to(vae, setup.device)  # where the cache, tasks encoded in the step, and samples need it
    cache = LatentCache(config.latents, clips, vae, encoder, setup.folder / "latents")
    setup.fill(cache)
    with setup.main_process_first():
        tokenizer = _tokenizer(config, clips.world.tiers, setup.folder / "tokenizer", models)
    source = CaptionedLatents(cache, tokenizer, config.text_encoder.max_length, config.text_drop)
    material = SpriteMaterial(config, clips, held_out, tokenizer, vae)
    return from_nothing(config, material, setup.plan, run.seed, models), source


def from_nothing(
    config: FlowObjectiveConfig, material: SpriteMaterial, plan: BatchPlan, seed: int, models: ModelSource = LOADED
) -> FlowObjective:
    """The objective around a fresh transformer and text encoder, or those of `init`."""
    vae, data = material.vae, material.data
    transformer = build_transformer(config, vae.config.latent_channels, seed, models)
    if config.explicit_attention:
        use_explicit_attention(transformer)
    if config.compile_blocks and models.has_weights:
        compile_blocks(transformer)
    text_encoder = build_text_encoder(config, len(material.tokenizer), seed, models)
    defaults = {
        "height": data.height,
        "width": data.width,
        "num_frames": config.validation_frames,
        "frame_rate": data.frame_rate,
        "num_inference_steps": config.sample_steps,
        "guidance_scale": config.guidance_scale,
        "max_sequence_length": config.text_encoder.max_length,
        **config.defaults,
    }
    pipeline = TextToVideoPipeline(
        transformer=transformer,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=material.tokenizer,
        scheduler=build_scheduler(config),
        defaults=defaults,
    )
    lengths = {count for stage in plan.stages for count, share in stage.frames.items() if share > 0}
    export = partial(_export_sprites, data=data, lengths=lengths)
    return FlowObjective(config, pipeline, material, plan, export, text_encoder)


def _export_sprites(
    pipeline: TextToVideoPipeline, folder: Path, dtype: torch.dtype, data: SpritesConfig, lengths: set[int]
) -> float:
    pipeline.register_to_config(trained=sprites_statement(data, lengths, pipeline.vae))
    return save_pipeline(pipeline, folder, dtype)


def build_transformer(
    config: FlowObjectiveConfig, latent_channels: int, seed: int, models: ModelSource = LOADED
) -> VideoDiT:
    """A fresh transformer from the recipe's `model`, or the one of the pipeline folder in `init`.

    Channels of latents and text, and the width of cross-attention, follow from the other models and may be left out.
    """
    if config.init is not None:
        return models.transformer(config.init)
    channels = latent_channels * config.model.get("patch_size", 1) ** 2
    model = {
        "in_channels": channels,
        "out_channels": channels,
        "caption_channels": config.text_encoder.d_model,
        **config.model,
    }
    if {"num_attention_heads", "attention_head_dim"} <= set(model):
        model.setdefault("cross_attention_dim", model["num_attention_heads"] * model["attention_head_dim"])
    try:
        return models.fresh(lambda: VideoDiT(**model), lambda made: made.init_weights(generator(seed, "weights")))
    except TypeError as error:
        raise RequestError(f"objective.model does not fit VideoDiT: {error}") from None


def build_scheduler(config: FlowObjectiveConfig) -> FlowMatchEulerDiscreteScheduler:
    """The sampling schedule that belongs to the training density: shifted by e^mu, mu linear in the token count."""
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=config.shift.base_shift,
        max_shift=config.shift.max_shift,
        base_image_seq_len=config.shift.base_tokens,
        max_image_seq_len=config.shift.max_tokens,
        shift_terminal=config.shift_terminal,
    )


def _tokenizer(
    config: FlowObjectiveConfig, tiers: tuple[int, ...], folder: Path, models: ModelSource
) -> PreTrainedTokenizerBase:
    """The run's tokenizer: fitted once and kept, since the text encoder's ids must never change their meaning."""
    if config.init is not None:
        return models.tokenizer(config.init)
    if not folder.is_dir() and not models.has_weights:
        return embedded_tokenizer()
    if not folder.is_dir():
        fitted = sprite_tokenizer(config.text_encoder.vocabulary, config.text_encoder.max_length, tiers)
        with part_of(folder, overwrite=False, folder=True) as part:
            fitted.save_pretrained(part)
    return AutoTokenizer.from_pretrained(folder)


@builds(FineTuneObjectiveConfig)
def build_fine_tuning(config: FineTuneObjectiveConfig, setup: Setup) -> tuple[FlowObjective, FootageLatents]:
    """A finished model on cached footage."""
    run = setup.run
    data = data_of(config, run, FootageConfig)
    index = CacheIndex.open(data.index_file)
    parts = ModelParts.find(config.model, index.text_encoder)
    if parts.vae_hash != index.vae_hash:
        raise CheckpointError(f"{data.index_file} was made with another VAE than that of {config.model}: cache again.")
    source = footage_source(data, index, parts, config.text_drop)
    if config.offload:
        check_offload(run)
    narrow = run.mixed_precision == "bf16" and config.mode == "lora"
    pipeline = load_pipeline(config, torch.bfloat16 if narrow else torch.float32, parts, source, setup.models)
    material = FootageMaterial(config, source, pipeline.vae.strides)
    objective = fine_tuned(config, pipeline, material, setup.plan, run.seed, setup.device, setup.models)
    objective.origin = parts.identity
    return objective, source


def fine_tuned(
    config: FineTuneObjectiveConfig,
    pipeline: TextToVideoPipeline,
    material: Any,
    plan: BatchPlan,
    seed: int,
    device: torch.device | str = "cpu",
    models: ModelSource = LOADED,
) -> FlowObjective:
    """The objective around a finished pipeline, whose transformer is frozen below a LoRA, or trained whole.

    Args:
        config: of the recipe.
        pipeline: the model, changed in place.
        material: of the footage.
        plan: says which stage of the recipe a step belongs to.
        seed: of the recipe; initialises the LoRA.
        device: where it will be trained; needed for `offload` alone.
        models: where the pipeline comes from; without weights, they are held as in the file.
    """
    transformer = pipeline.transformer
    if config.explicit_attention:
        use_explicit_attention(transformer)
    if config.base_weights != "keep" and models.has_weights:
        quantize_blocks(transformer, config.base_weights)
    if config.mode == "lora":
        add_lora(transformer, config.lora, key_number(seed, "lora"))
    else:
        transformer.requires_grad_(True)
    if config.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    if config.offload and models.has_weights:
        offload_blocks(transformer, transformer.transformer_blocks, device, frozen_only=True)
    objective = FlowObjective(config, pipeline, material, plan, _export_lora if config.freezes else _export_whole)
    objective.trained_only = True
    return objective


def _export_lora(pipeline: TextToVideoPipeline, folder: Path, dtype: torch.dtype) -> float:
    return pipeline.save_lora(folder, ADAPTER).stat().st_size / 2**20


def _export_whole(pipeline: TextToVideoPipeline, folder: Path, dtype: torch.dtype) -> float:
    kept = pipeline.transformer
    pipeline.register_modules(transformer=copy.deepcopy(kept).to(dtype))
    try:
        pipeline.save_pretrained(folder)
    finally:
        pipeline.register_modules(transformer=kept)
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20


def check_offload(run: RunConfig) -> None:
    """Refuse what block offload cannot be combined with: weights that others copy or divide."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if run.sharding != "none" or processes > 1:
        raise RequestError(
            f"objective.offload=true works in one process, and this run has {processes} with sharding="
            f"{run.sharding}: leave offload out there; sharding=fsdp divides the weights among the processes."
        )


def footage_source(data: FootageConfig, index: CacheIndex, parts: ModelParts, text_drop: float) -> FootageLatents:
    """The samples of a cache with their captions."""
    device = index.text_device if index.text_device == "cpu" or torch.accelerator.is_available() else "cpu"
    text = parts.text(text_cache(index.data))
    encoding = CaptionEncoding(text, index.max_sequence_length, parts.convention.mask_text_encoder, device)
    return FootageLatents(data, index, encoding, text_drop)


def load_pipeline(
    config: FineTuneObjectiveConfig,
    dtype: torch.dtype,
    parts: ModelParts,
    source: FootageLatents,
    models: ModelSource = LOADED,
) -> TextToVideoPipeline:
    """The model, its text encoder left out: captions are in the cache. It states that it was trained on them, too."""
    pipeline = models.pipeline(
        config.model,
        torch_dtype=dtype,
        text_encoder_folder=parts.text_encoder_folder,
        text_cache=text_cache(source.index.data),
    )
    pipeline.vae.float().requires_grad_(False)
    shapes = {VideoShape(*sample.bucket[:3]) for sample in source.samples}
    pipeline.register_to_config(trained=widened(pipeline.config.trained, shapes))
    return pipeline
