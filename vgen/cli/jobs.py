"""From checked options to a written clip: what the four commands that make clips have in common.

The order matters: everything that can be refused is checked before torch is imported.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vgen.cli import display, processes
from vgen.cli.contents import contents
from vgen.cli.limits import check_limits
from vgen.cli.lora import check_loras, load_loras
from vgen.cli.memory import plan_memory
from vgen.cli.upscale import check_upscale, load_two_pass
from vgen.engine.lossy.magnitudes import find_magnitudes
from vgen.errors import OutOfMemoryError, bytes_text, counted, duration
from vgen.hub.find import (
    find_text_encoder,
    model_defaults,
    model_hash,
    model_strides,
    resolve_model,
    text_encoder_bytes,
)
from vgen.io.media.output import check_output, check_output_size
from vgen.progress import Progress
from vgen.types import Strides

if TYPE_CHECKING:
    import numpy as np

    from vgen.request.request import GenerateRequest, ResolvedRequest

LARGE_ENCODER = 64 << 20
"""Bytes of a text encoder's weights from which on prompts are kept on disk unless the caller says otherwise."""


@dataclass(frozen=True)
class Model:
    """A model's folder and what its JSON says."""

    folder: Path
    defaults: Mapping[str, Any]
    strides: Strides

    @classmethod
    def find(cls, name: str) -> Model:
        """Look up and check a model; see `vgen.hub.find.resolve_model`."""
        folder = resolve_model(name)
        return cls(folder, model_defaults(folder), model_strides(folder))


@dataclass
class Job:
    """One clip to make.

    Attributes:
        request: everything resolved.
        model: where it comes from.
        output: name of the output.
        overwrite: replace what is there.
        notes: what was done to the inputs, said before a model is loaded; what comes later, when the clip is finished.
    """

    request: ResolvedRequest
    model: Model
    output: str
    overwrite: bool
    notes: list[str] = field(default_factory=list)


def ask(task: str, output: str, overwrite: bool, fields: Mapping[str, Any]) -> GenerateRequest:
    """Check the request's fields and its output, with nothing loaded."""
    from vgen.request.request import GenerateRequest

    request = GenerateRequest.create(task=task, **fields)
    check_output(output, overwrite)
    if request.video is not None:
        display.tell(Progress("reading", what=request.video))
    return request


def plan(request: GenerateRequest, model: Model, output: str, overwrite: bool, video_frames: int | None = None) -> Job:
    """Resolve a request and check that its output can hold the clip."""
    resolved = request.resolve(model.defaults, model.strides, video_frames)
    processes.check(resolved)
    if request.seed is None:
        resolved = resolved.model_copy(update={"seed": processes.agree(resolved.seed)})
    scale = resolved.scale or 1
    check_output_size(output, scale * resolved.height, scale * resolved.width, resolved.frame_rate)
    check_limits(resolved, model.folder, model.strides)
    find_text_encoder(model.folder, resolved.text_encoder)
    if resolved.step_cache is not None and resolved.step_cache.startswith("magcache"):
        find_magnitudes(model.folder)
    notes = [*check_loras(resolved, model.folder), *check_upscale(resolved, model.folder, model.strides)]
    if resolved.lossy:
        notes.append(f"Lossy, not the exact clip of this seed: {', '.join(resolved.lossy)}.")
    return Job(resolved, model, output, overwrite, notes)


def load_pipeline(class_name: str, job: Job, prompts: Sequence[str] | None = None) -> Any:
    """Import torch, load the pipeline, and settle device and dtype in `job.request`.

    A text encoder that does not stay is done with before the other models go to a GPU.

    Args:
        class_name: of vgen.pipelines.
        job: what it is for.
        prompts: of all its calls; None: that of the job.
    """
    say_notes(job)
    display.tell(Progress("loading", what=job.request.model))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    import torch

    import vgen.pipelines
    from vgen.engine.device import choose_device

    device = processes.place(job.request.device) if processes.count() > 1 else choose_device(job.request.device)
    dtype = (
        job.request.dtype if job.request.dtype != "auto" else ("bfloat16" if device.startswith("cuda") else "float32")
    )
    job.request = job.request.model_copy(update={"device": device, "dtype": dtype})
    pipeline_class = getattr(vgen.pipelines, class_name)
    text_cache, memory = text_cache_for(job.request, job.model.folder), None
    if job.request.memory is not None:
        memory = plan_memory(job.request, job.model.folder, keep_text=text_cache is None)
    text_first = text_cache is not None and device != "cpu"
    pipe = pipeline_class.from_pretrained(
        job.request.model,
        dtype=getattr(torch, dtype),
        device=device if memory is None and not text_first else "cpu",
        text_encoder_folder=job.request.text_encoder,
        text_cache=text_cache,
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.observer = display.tell
    if pipe.deferred_text is not None:
        pipe.deferred_text.quantize = job.request.quantize_text
    if text_first:
        from vgen.pipelines.loading.placement import encode_first

        words = [job.request.prompt] if prompts is None else prompts
        encode_first(pipe, device, words, job.request.negative_prompt, None if memory is None else memory.text)
        if memory is None:
            pipe.to(device)
    load_loras(pipe, job.request)
    set_lossy(pipe, job)
    if job.request.compile:
        from vgen.engine.speed.compile import compile_blocks

        compile_blocks(pipe.transformer)
    if processes.count() > 1:
        processes.spread(pipe, job.request)
    if memory is not None:
        from vgen.pipelines.loading.placement import place_models

        place_models(pipe, memory, device)
    return pipe


def set_lossy(pipe: Any, job: Job) -> None:
    """Quantise a loaded pipeline if its request says so, and give it what its step cache needs."""
    from vgen.engine.lossy.quantize import quantize, quantize_text_encoder

    request = job.request
    if request.step_cache is not None and request.step_cache.startswith("magcache"):
        pipe.magnitudes = find_magnitudes(job.model.folder)
    if request.quantize_text is not None and pipe.deferred_text is None:  # a deferred one is told before it is used
        quantize_text_encoder(pipe.text_encoder, request.quantize_text)
    if request.quantize is not None:
        if request.lora:
            pipe.fuse_lora()
        quantize(pipe.transformer, request.quantize)


def text_cache_for(request: ResolvedRequest, folder: Path) -> Any:
    """Where a model's prompts are kept: on disk if asked for or if its encoder is large; imports torch.

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


def make_clip(pipe: Any, job: Job, finish: Callable[[np.ndarray], np.ndarray] | None = None, **inputs: Any) -> None:
    """Run the pipeline on one job, write the clip, and say so.

    The noise comes from a generator of this clip's own, on the CPU, seeded with the request's seed.

    Args:
        pipe: loaded by `load_pipeline`.
        job: with device and dtype settled.
        finish: what is done with the frames, uint8 [F, H, W, 3], before they are written.
        **inputs: what the task adds: image, first, last, video, conditions, keep_known_pixels.
    Raises:
        OutOfMemoryError: names what would help.
        OutputError: see `vgen.io.media.video.write_video`.
    """
    import torch

    from vgen.io.media.video import write_video

    started = time.monotonic()
    request = job.request
    if request.upscale is not None:
        inputs["two_pass"] = load_two_pass(request.upscale, request.upscale_preset, request.dtype, request.device)
    try:
        result = pipe(
            prompt=request.prompt,
            num_frames=request.num_frames,
            **request.call_settings(),
            generator=[torch.Generator("cpu").manual_seed(request.seed)],
            output_type="uint8",
            **inputs,
        )
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise out_of_memory(request, error) from None
    if not processes.leads():
        return
    frames = result.frames[0]
    frames = frames if finish is None else finish(frames)
    display.tell(Progress("writing", what=job.output))
    metadata = request.to_metadata(model_hash(job.model.folder), versions(), contents(request, job.model.folder))
    path = write_video(job.output, frames, request.frame_rate, metadata, job.overwrite, request.scale or 1)
    report(path, job, frames, time.monotonic() - started)


def out_of_memory(request: ResolvedRequest, error: BaseException) -> OutOfMemoryError:
    """The error that says what would help."""
    return OutOfMemoryError(
        f"{request.width} x {request.height} x {counted(request.num_frames, 'frame')} in {request.dtype} did not "
        f"fit in the memory of {request.device}; use fewer frames, a smaller size, --memory, or --dtype bfloat16. "
        f"({str(error)[:200]})"
    )


def versions() -> dict[str, str]:
    """Versions of the libraries that decide what comes out."""
    from importlib.metadata import version

    return {name: version(name) for name in ("vgen", "torch", "diffusers", "transformers")}


def report(path: Path, job: Job, frames: Sized, seconds: float) -> None:
    """Say what was done, and what is to be said about it."""
    request = job.request
    files = [path] if path.is_file() else list(path.iterdir())
    size = sum(file.stat().st_size for file in files)
    say_notes(job)
    enlarged = f", written {request.scale} times as large" if (request.scale or 1) > 1 else ""
    display.say(
        f"{os.fspath(job.output)}: {counted(len(frames), 'frame')} of {request.width} x {request.height} at "
        f"{request.frame_rate:g} fps{enlarged}, {bytes_text(size)}, made in {duration(seconds)}, "
        f"seed {request.seed}, model {request.model}"
    )


def say_fit(name: str, before: Sequence[int], request: ResolvedRequest) -> list[str]:
    """One sentence if something of another size, (width, height), was fitted to the clip's."""
    if tuple(before) == (request.width, request.height):
        return []
    what = {"cover": "scaled and cut", "contain": "scaled and padded", "stretch": "stretched"}[request.fit]
    return [
        f"{name}: {before[0]} x {before[1]} was {what} to {request.width} x {request.height} (--fit {request.fit})."
    ]


def fit_picture(pixels: np.ndarray, request: ResolvedRequest) -> np.ndarray:
    """uint8 [H, W, 3] in the clip's size; for outpaint made smaller until it lies within it."""
    import numpy as np
    from PIL import Image

    from vgen.io.media.images import fit_image, shrink_into

    picture = Image.fromarray(pixels)
    if request.task == "outpaint":
        return np.asarray(shrink_into(picture, request.height, request.width))
    return np.asarray(fit_image(picture, request.height, request.width, request.fit))


def say_notes(job: Job) -> None:
    """Say what was done to the inputs; each sentence once."""
    if processes.leads():
        for note in job.notes:
            display.say(note)
    job.notes.clear()
