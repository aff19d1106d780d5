"""What a model cannot do, or was not made for, found before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vgen.hub import model_scheduler
from vgen.steps import check_shift
from vgen.types import Strides, VideoShape

if TYPE_CHECKING:
    from vgen.request import ResolvedRequest


def check_limits(request: ResolvedRequest, folder: Path, strides: Strides) -> None:
    """Refuse a clip that the model has no schedule for.

    Args:
        request: resolved.
        folder: of the model, or its single file.
        strides: pixels per token.
    Raises:
        ShapeError: names the size and the largest that works.
    """
    shape = VideoShape(request.num_frames, request.height, request.width)
    if request.upscale is None:  # the schedules of two passes are checked with the passes
        steps = max(request.num_inference_steps, request.draft_steps or 0)
        check_shift(model_scheduler(folder), steps, shape, strides, request.sigmas)
