"""A job as one call of its loaded pipeline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vgen.errors import OutOfMemoryError, counted
from vgen.events import Observer, Part
from vgen.jobs.plan import Job
from vgen.jobs.steps import StepSequence
from vgen.jobs.upscale import load_two_pass
from vgen.request.request import ResolvedRequest

if TYPE_CHECKING:
    import numpy as np


def make_frames(pipe: Any, job: Job, steps: StepSequence, on_event: Observer) -> np.ndarray:
    """The frames of a clip, uint8 [F, H, W, 3].

    The noise comes from a generator of this clip's own, on the CPU, seeded with the request's seed.

    Args:
        pipe: loaded, of the job's class.
        job: with device and dtype settled.
        steps: counts those of all calls.
        on_event: called with the parts of a clip that closes.
    """
    from vgen.pipelines import VideoCondition

    request, inputs = job.request, job.inputs
    arguments, known = dict(inputs.arguments), [VideoCondition(*entry[:2], mask=entry.mask) for entry in inputs.known]
    if inputs.closes and not known:
        on_event(Part("part", 1, 2))
        first = _call(pipe, request, num_frames=1, output_type="pil").frames[0][0]
        known = [VideoCondition(first), VideoCondition(first, frame_index=-1)]
        steps.next_call()
        on_event(Part("part", 2, 2))
    if known:
        arguments["conditions"] = known
    if known or "image" in arguments:
        arguments["keep_known_pixels"] = request.keep_known_pixels
    if request.upscale is not None:
        arguments["two_pass"] = load_two_pass(
            request.upscale, str(request.upscale_preset), request.dtype, request.device
        )
    frames = _call(pipe, request, num_frames=request.num_frames, output_type="uint8", **arguments).frames[0]
    return frames[:-1] if inputs.closes else frames


def _call(pipe: Any, request: ResolvedRequest, **arguments: Any) -> Any:
    import torch

    generator = [torch.Generator("cpu").manual_seed(request.seed)]
    return pipe(prompt=request.prompt, **request.call_settings(), generator=generator, **arguments)


def out_of_memory(request: ResolvedRequest, error: BaseException) -> OutOfMemoryError:
    """The error that says what would help."""
    return OutOfMemoryError(
        f"{request.width} x {request.height} x {counted(request.num_frames, 'frame')} in {request.dtype} did not "
        f"fit in the memory of {request.device}; use fewer frames, a smaller size, --memory, or --dtype bfloat16. "
        f"({str(error)[:200]})"
    )
