"""`vgen outpaint`: what lies around a video."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vgen.cli.options import JobOptions, KeepKnownPixels, with_job_options

if TYPE_CHECKING:
    import numpy as np


@with_job_options
def outpaint(
    video: Annotated[str, typer.Argument(metavar="VIDEO", help="The clip to widen.")],
    prompt: Annotated[str, typer.Argument(metavar="[PROMPT]", help="What the wider clip shows.")] = "",
    keep_known_pixels: KeepKnownPixels = True,
    *,
    options: JobOptions,
) -> None:
    """Put a video in the middle of a larger clip (--width, --height), and paint what lies around it.

    A video that is larger than the clip is made smaller until it fits.
    """
    from vgen.cli.footage import plan_on_video
    from vgen.cli.jobs import load_pipeline, make_clip

    fields = {"prompt": prompt, "keep_known_pixels": keep_known_pixels}
    job, frames = plan_on_video("outpaint", video, options, fields)
    canvas, known, inside = place(frames, job.request.height, job.request.width)
    if inside != (frames.shape[2], frames.shape[1]):
        job.notes.append(f"{video}: {frames.shape[2]} x {frames.shape[1]} was scaled to {inside[0]} x {inside[1]}.")
    pipe = load_pipeline("MaskedPredictionPipeline", job)
    from vgen.pipelines import VideoCondition

    make_clip(pipe, job, conditions=[VideoCondition(canvas, mask=known)], keep_known_pixels=keep_known_pixels)


def place(frames: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Put frames in the middle of a canvas.

    Args:
        frames: uint8 [F, H, W, 3].
        height, width: of the canvas.
    Returns:
        uint8 [F, height, width, 3], the mask float [height, width] with 1 where they lie, and their (width, height).
    Raises:
        RequestError: they fill the canvas.
    """
    import numpy as np
    from PIL import Image

    from vgen.errors import RequestError

    own_height, own_width = frames.shape[1:3]
    scale = min(1.0, height / own_height, width / own_width)
    inner = max(round(own_height * scale), 1), max(round(own_width * scale), 1)
    if inner == (height, width):
        raise RequestError(
            f"width={width}, height={height} is filled by the video of {own_width} x {own_height}: nothing lies around "
            "it; use a larger width or height, or another shape."
        )
    if scale < 1:
        size = (inner[1], inner[0])
        frames = np.stack([np.asarray(Image.fromarray(f).resize(size, Image.Resampling.LANCZOS)) for f in frames])
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    canvas = np.zeros((len(frames), height, width, 3), np.uint8)
    known = np.zeros((height, width), np.float32)
    canvas[:, top : top + inner[0], left : left + inner[1]] = frames
    known[top : top + inner[0], left : left + inner[1]] = 1
    return canvas, known, (inner[1], inner[0])
