"""The memory of a call planned from a model's configuration, and a loaded pipeline set up by the plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import cpu_offload_with_hook
from torch import nn

from vgen.engine.lossy import quantize as engine_quantize
from vgen.engine.memory.offload import offload_blocks
from vgen.engine.memory.plan import CUDA_CONTEXT, MemoryPlan, Sizes, choose_plan, find_plan
from vgen.engine.memory.steps import Work
from vgen.engine.session import Placement
from vgen.errors import OutOfMemoryError, RequestError, bytes_text, counted
from vgen.hub.find import component_config, find_text_encoder
from vgen.models.empty import empty_model
from vgen.models.fusing import move_together
from vgen.pipelines.text.encoder import empty_text_encoder
from vgen.types import LatentShape, VideoShape

_SMALLER = (0.75, 0.5, 0.375, 0.25)
"""Sides of the sizes that are tried as a remedy, as shares."""


def sizes_of(place: Path, dtype: torch.dtype, text_folder: str | Path | None = None, **options: Any) -> Sizes:
    """The parts of a model without content.

    Args:
        place: its folder or single file.
        dtype: that it will have.
        text_folder: of the text encoder, where it is not the model's.
        **options: see `sizes_of_configs`.
    Raises:
        CheckpointError: the configuration makes no model.
    """
    configs = {kind: component_config(place, kind) for kind in ("transformer", "vae")}
    text = find_text_encoder(place, text_folder) / "text_encoder"
    return sizes_of_configs(configs["transformer"], configs["vae"], dtype, text, **options)


def sizes_of_configs(
    transformer: Mapping[str, Any],
    vae: Mapping[str, Any],
    dtype: torch.dtype,
    text: Path | Mapping[str, Any] | None = None,
    *,
    keep_text: bool = False,
    quantize: str | None = None,
    quantize_text: str | None = None,
) -> Sizes:
    """The parts of a model without content, from configurations alone.

    Args:
        transformer, vae: arguments of VideoDiT and CausalVideoVAE.
        dtype: that all will have.
        text: folder with the text encoder's config.json, or arguments of T5's; None: prompts come encoded.
        keep_text: the text encoder stays on the device.
        quantize: of `vgen.request.lossy.QUANTIZATIONS`; only "int8-weights" takes less in the plan.
        quantize_text: of `vgen.request.lossy.TEXT_QUANTIZATIONS`.
    """
    models: list[Any] = [empty_model("VideoDiT", transformer), empty_model("CausalVideoVAE", vae)]
    encoder = None if text is None else empty_text_encoder(text)
    for model in (*models, *([] if encoder is None else [encoder])):
        nn.Module.to(model, dtype)  # diffusers' own `to` warns about casting
    if quantize == "int8-weights":
        engine_quantize.quantize(models[0], quantize)
    if encoder is not None and quantize_text is not None:
        engine_quantize.quantize_text_encoder(encoder, quantize_text)
    blocks = () if encoder is None else tuple(encoder.encoder.block)
    return Sizes(models[0], models[1], encoder, blocks, keep_text)


def plan_call(sizes: Sizes, work: Work, budget: int, device: str, *, base: int | None = None) -> MemoryPlan:
    """The fastest way that fits.

    Args:
        sizes: of the model.
        work: the call.
        budget: bytes that may be taken of the device.
        device: "cpu", "cuda" or "cuda:N".
        base: what the runtime takes; None: on a CPU what this process holds now, on a GPU CUDA_CONTEXT.
    Raises:
        OutOfMemoryError: nothing fits; says what would, and the largest of some smaller sizes that fits.
        RequestError: a device whose memory cannot be planned.
    """
    kind = device.partition(":")[0]
    if kind not in ("cpu", "cuda"):
        raise RequestError(f"memory: device={device!r} cannot be planned for; use cpu or cuda, or leave memory out.")
    if base is None:
        base = psutil.Process().memory_info().rss if kind == "cpu" else CUDA_CONTEXT
    try:
        return choose_plan(sizes, work, budget, device=kind, base=base)
    except OutOfMemoryError as error:
        raise _with_remedy(error, sizes, work, budget, kind, base) from None


def _with_remedy(
    error: OutOfMemoryError, sizes: Sizes, work: Work, budget: int, device: str, base: int
) -> OutOfMemoryError:
    """The error with a smaller size that fits, if one does."""
    before, patch = work.shape, sizes.transformer.config.patch_size
    remedy = " Smaller sizes do not fit either: it is the weights and the runtime that need it."
    for share in _SMALLER:
        height, width = (max(round(side * share) // patch, 1) * patch for side in (before.height, before.width))
        frames = max(round((before.frames - 1) * share), 0) + 1
        smaller = work._replace(shape=LatentShape(frames, height, width))
        plan = find_plan(sizes, smaller, budget, device=device, base=base)
        if plan is not None:
            pixels = VideoShape.of_latent(smaller.shape, sizes.vae.strides)
            size = f"{pixels.width} x {pixels.height} x {counted(pixels.num_frames, 'frame')}"
            remedy = f" {size} would take {bytes_text(plan.peak)}."
            break
    refused = OutOfMemoryError(str(error) + remedy)
    refused.least = error.least
    return refused


def encode_first(pipe: Any, device: str, prompts: Sequence[str], negative_prompt: str, way: str | None = None) -> None:
    """Encode prompts by a deferred text encoder while nothing else lies on the device.

    Args:
        pipe: loaded, on the host, with a `deferred_text`.
        device: to work on.
        prompts, negative_prompt: that calls are going to ask for.
        way: of TEXT_WAYS; None: as `deferred_text` is set up.
    """
    if way is not None:
        _set_text_way(pipe, way)
    before, pipe.placement = pipe.placement, Placement(torch.device(device))
    try:
        pipe.encode_ahead(prompts, negative_prompt)
    finally:
        pipe.placement = before


def _set_text_way(pipe: Any, way: str) -> None:
    pipe.deferred_text.way = way if way in ("blocks", "host") else "dropped"
    pipe.deferred_text.texts_at_once = 2


def place_models(pipe: Any, plan: MemoryPlan, device: str) -> None:
    """Put a pipeline's models where a plan wants them.

    Args:
        pipe: loaded, on the host.
        plan: of `plan_call`.
        device: to work on.
    """
    if getattr(pipe, "deferred_text", None) is not None:
        _set_text_way(pipe, plan.text)
    settings = {"guidance_batching": plan.guidance_batching, "vae_memory": plan.vae_memory}
    pipe.placement = Placement(torch.device(device), settings=settings)
    if plan.places == "together":
        pipe.to(device)
        return
    hooks: list[Any] = []
    if plan.places == "blocks":
        for block in pipe.transformer.transformer_blocks:
            move_together(block.attn1.to_q, block.attn1.to_k, block.attn1.to_v)
        offload_blocks(pipe.transformer, pipe.transformer.transformer_blocks, device)
        moved = [pipe.vae]
    else:
        moved = [pipe.transformer, pipe.vae]
    previous = None
    for model in moved:
        _, previous = cpu_offload_with_hook(model, device, previous)
        hooks.append(previous)
    if pipe.text_encoder is not None:
        pipe.text_encoder.to(device)
    pipe.placement.hooks = hooks
