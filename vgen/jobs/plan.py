"""From a request to a job: everything that can be refused is refused here, before torch is imported."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vgen.engine.lossy.magnitudes import find_magnitudes
from vgen.errors import OutputError
from vgen.events import Observer, Reading
from vgen.hub.find import find_text_encoder
from vgen.hub.model import Model
from vgen.io.media.output import check_output, check_output_size
from vgen.jobs import processes
from vgen.jobs.inputs import TASKS, InputReader, Inputs
from vgen.jobs.loras import check_loras
from vgen.jobs.upscale import check_upscale
from vgen.request.request import GenerateRequest, ResolvedRequest
from vgen.request.steps import check_shift
from vgen.types import VideoShape


@dataclass(frozen=True)
class Job:
    """One clip to make.

    Attributes:
        request: everything resolved; device and dtype may still be "auto".
        asked_seed: the seed that the caller gave, None where it was drawn.
        model: where it comes from.
        output: name of the output.
        overwrite: replace what is there.
        pipeline: name of a class of vgen.pipelines.
        inputs: pictures and videos, read and fitted.
        notes: sentences about what was done to the inputs.
    """

    request: ResolvedRequest
    asked_seed: int | None
    model: Model
    output: str
    overwrite: bool
    pipeline: str
    inputs: Inputs
    notes: tuple[str, ...] = ()


def plan(
    request: GenerateRequest,
    output: str | os.PathLike[str],
    overwrite: bool = False,
    on_event: Observer | None = None,
) -> Job:
    """Check a request against its model and its output, and read and fit its inputs; nothing heavy is loaded.

    Args:
        request: see `GenerateRequest.create`.
        output: .mp4, .webm or .gif, or a folder of png frames.
        overwrite: replace what is there.
        on_event: called with what is read.
    Raises:
        RequestError: something cannot be done as asked, see the subclasses in `vgen.errors`; nothing was computed.
    """
    output = os.fspath(output)
    check_output(output, overwrite)
    if request.video is not None and on_event is not None:
        on_event(Reading(request.video))
    return prepare(request, Model.find(request.model), output, overwrite)


def prepare(request: GenerateRequest, model: Model, output: str, overwrite: bool) -> Job:
    """As `plan`, for a model that was found and an output that may be written."""
    task = TASKS[request.task]
    reader = InputReader(request, model, lambda resolved: check_resolved(resolved, model, output))
    inputs = task.read(reader)
    if inputs.long is not None:
        check_room(output, inputs.long.num_frames, reader.request)
    return Job(reader.request, request.seed, model, output, overwrite, task.pipeline, inputs, tuple(reader.notes))


def check_resolved(request: ResolvedRequest, model: Model, output: str) -> list[str]:
    """Refuse what this machine, this model or this output cannot do.

    Returns:
        Sentences about what is used.
    Raises:
        RequestError: see `plan`.
    """
    processes.check(request)
    scale = request.scale or 1
    check_output_size(output, scale * request.height, scale * request.width, request.frame_rate)
    check_limits(request, model)
    find_text_encoder(model.folder, request.text_encoder)
    if request.step_cache is not None and request.step_cache.startswith("magcache"):
        find_magnitudes(model.folder)
    checks: tuple[Callable[[ResolvedRequest, Model], list[str]], ...] = (check_loras, check_upscale)
    notes = [note for check in checks for note in check(request, model)]
    if request.lossy:
        notes.append(f"Lossy, not the exact clip of this seed: {', '.join(request.lossy)}.")
    return notes


def check_limits(request: ResolvedRequest, model: Model) -> None:
    """Refuse a clip that the model has no schedule for, or was not trained for; warn of words that it does not know.

    Where a LoRA is applied, which may have been trained for more, nothing but the schedule is refused.

    Raises:
        ShapeError: names the size or length and the nearest that works.
    """
    shape = VideoShape(request.num_frames, request.height, request.width)
    if not request.lora:
        if not request.allow_untrained:
            model.trained.refuse(shape, model.strides)
        for prompt in (request.prompt, *(segment.prompt for segment in request.segments or ())):
            model.trained.warn_of_words(prompt)
    if request.upscale is None:  # the schedules of two passes are checked with the passes
        check_shift(model.scheduler, request.most_steps, shape, model.strides, request.sigmas)


def check_room(output: str, num_frames: int, request: ResolvedRequest) -> None:
    """Refuse a long clip whose frames do not fit on the disk while it is made.

    Raises:
        OutputError: with the bytes needed and those free.
    """
    needed = num_frames * request.height * request.width * 3
    free = shutil.disk_usage(Path(output).resolve().parent).free
    if needed > free:
        raise OutputError(
            f"{output} needs {needed:,} bytes for its frames while it is made, and {free:,} are free: "
            "make it shorter, smaller, or elsewhere."
        )
