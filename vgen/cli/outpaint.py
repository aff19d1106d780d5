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
    job, clip = plan_on_video("outpaint", video, options, fields)
    canvas, known = place(clip.frames, job.request.height, job.request.width)
    if clip.frames.shape[1:3] != clip.size:
        inside = f"{clip.frames.shape[2]} x {clip.frames.shape[1]}"
        job.notes.append(f"{video}: {clip.size[1]} x {clip.size[0]} was scaled to {inside}.")
    pipe = load_pipeline("MaskedPredictionPipeline", job)
    from vgen.pipelines import VideoCondition

    make_clip(pipe, job, conditions=[VideoCondition(canvas, mask=known)], keep_known_pixels=keep_known_pixels)


def place(frames: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Put frames in the middle of a canvas.

    Args:
        frames: uint8 [F, H, W, 3], not larger than the canvas.
        height, width: of the canvas.
    Returns:
        uint8 [F, height, width, 3], and the mask float [height, width] with 1 where they lie.
    Raises:
        RequestError: they fill the canvas.
    """
    import numpy as np

    from vgen.errors import RequestError

    inner = frames.shape[1:3]
    if inner == (height, width):
        raise RequestError(
            f"width={width}, height={height} is filled by the video: nothing lies around it; use a larger width or "
            "height, or another shape."
        )
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    canvas = np.zeros((len(frames), height, width, 3), np.uint8)
    known = np.zeros((height, width), np.float32)
    canvas[:, top : top + inner[0], left : left + inner[1]] = frames
    known[top : top + inner[0], left : left + inner[1]] = 1
    return canvas, known
