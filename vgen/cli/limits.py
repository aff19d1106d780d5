"""What a model cannot do, or was not made for, found before anything is loaded."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vgen.cli import display, processes
from vgen.errors import UntrainedWarning
from vgen.hub.limits import model_scheduler, model_trained
from vgen.request.steps import check_shift
from vgen.types import Strides, VideoShape

if TYPE_CHECKING:
    from vgen.request.request import ResolvedRequest


def check_limits(request: ResolvedRequest, folder: Path, strides: Strides) -> None:
    """Refuse a clip that the model has no schedule for, or was not trained for; warn of words that it does not know.

    Where a LoRA is applied, which may have been trained for more, nothing but the schedule is refused.

    Args:
        request: resolved.
        folder: of the model, or its single file.
        strides: pixels per token.
    Raises:
        ShapeError: names the size or length and the nearest that works.
    """
    shape, trained = VideoShape(request.num_frames, request.height, request.width), model_trained(folder)
    if not request.lora:
        if not request.allow_untrained:
            trained.refuse(shape, strides)
        for prompt in (request.prompt, *(segment.prompt for segment in request.segments or ())):
            trained.warn_of_words(prompt)
    if request.upscale is None:  # the schedules of two passes are checked with the passes
        steps = max(request.num_inference_steps, request.draft_steps or 0)
        check_shift(model_scheduler(folder), steps, shape, strides, request.sigmas)


@contextmanager
def notes_of_warnings() -> Iterator[None]:
    """Inside, each `UntrainedWarning` is said at once and only once, as a note on standard error."""
    said: set[str] = set()
    show = warnings.showwarning

    def say(message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> None:
        if not issubclass(category, UntrainedWarning):
            show(message, category, *rest, **named)
        elif str(message) not in said and processes.leads():
            said.add(str(message))
            display.say(f"note: {message}", err=True)

    with warnings.catch_warnings():
        warnings.simplefilter("always", UntrainedWarning)
        warnings.showwarning = say
        yield
