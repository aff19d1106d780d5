"""A job's pipeline: loaded, with its LoRAs, its lossy ways and its memory plan, on its device."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vgen.hub.find import text_encoder_bytes
from vgen.jobs import processes
from vgen.jobs.loras import load_loras
from vgen.jobs.memory import plan_memory
from vgen.jobs.plan import Job
from vgen.request.request import ResolvedRequest

LARGE_ENCODER = 64 << 20
"""Bytes of a text encoder's weights from which on prompts are cached on disk unless the caller says otherwise."""


def settle_machine(request: ResolvedRequest) -> ResolvedRequest:
    """The request with the device and the dtype that it will have here; imports torch.

    Raises:
        RequestError: the device is not on this machine.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from vgen.engine.device import choose_device

    device = processes.place(request.device) if processes.count() > 1 else choose_device(request.device)
    by_device = "bfloat16" if device.startswith("cuda") else "float32"
    dtype = request.dtype if request.dtype != "auto" else by_device
    return request.model_copy(update={"device": device, "dtype": dtype})


def load_pipeline(job: Job, prompts: Sequence[str], say: Callable[[str], None]) -> Any:
    """Load the pipeline of a job.

    A text encoder that does not stay is done with before the other models go to a GPU.

    Args:
        job: with device and dtype settled.
        prompts: of all calls that are to come.
        say: is given what was planned.
    Raises:
        CheckpointError: the model cannot be loaded.
        OutOfMemoryError: it does not fit in the memory that the request allows.
    """
    import torch

    import vgen.pipelines

    request, folder, device = job.request, job.model.folder, job.request.device
    text_cache, memory = text_cache_for(request, folder), None
    if request.memory is not None:
        memory = plan_memory(request, job.model, keep_text=text_cache is None)
        for line in memory.lines():
            say(line)
    text_first = text_cache is not None and device != "cpu"
    pipe = getattr(vgen.pipelines, job.pipeline).from_pretrained(
        request.model,
        dtype=getattr(torch, request.dtype),
        device=device if memory is None and not text_first else "cpu",
        text_encoder_folder=request.text_encoder,
        text_cache=text_cache,
    )
    pipe.set_progress_bar_config(disable=True)
    if pipe.deferred_text is not None:
        pipe.deferred_text.quantize = request.quantize_text
    if text_first:
        from vgen.pipelines.loading.placement import encode_first

        encode_first(pipe, device, prompts, request.negative_prompt, None if memory is None else memory.text)
        if memory is None:
            pipe.to(device)
    load_loras(pipe, request)
    _quantize(pipe, request)
    if request.compile:
        from vgen.engine.speed.compile import compile_blocks

        compile_blocks(pipe.transformer)
    if processes.count() > 1:
        processes.spread(pipe, request)
    if memory is not None:
        from vgen.pipelines.loading.placement import place_models

        place_models(pipe, memory, device)
    return pipe


def _quantize(pipe: Any, request: ResolvedRequest) -> None:
    """Quantise a loaded pipeline if its request says so."""
    from vgen.engine.lossy.quantize import quantize, quantize_text_encoder

    if request.quantize_text is not None and pipe.deferred_text is None:  # a deferred one quantises when it is loaded
        quantize_text_encoder(pipe.text_encoder, request.quantize_text)
    if request.quantize is not None:
        if request.lora:
            pipe.fuse_lora()
        quantize(pipe.transformer, request.quantize)


def text_cache_for(request: ResolvedRequest, folder: Path) -> Any:
    """Where a model's prompts are cached: on disk if asked for or if its encoder is large; imports torch.

    Args:
        request: with `text_cache` (None: by the encoder's size) and `text_encoder`.
        folder: of the model, or its single file.
    Returns:
        A TextCache (in memory if the disk was refused), or None: the encoder is loaded with the rest.
    """
    from vgen.pipelines.text.cache import TextCache, cache_folder

    if request.text_cache is None and text_encoder_bytes(folder, request.text_encoder) < LARGE_ENCODER:
        return None
    return TextCache(None if request.text_cache is False else cache_folder())
