"""`vgen inpaint`: a region of a video painted anew."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vgen.cli.options import Fit, JobOptions, KeepKnownPixels, with_job_options

if TYPE_CHECKING:
    import numpy as np

_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


@with_job_options
def inpaint(
    video: Annotated[str, typer.Argument(metavar="VIDEO", help="The clip to change.")],
    prompt: Annotated[str, typer.Argument(metavar="[PROMPT]", help="What the clip shows.")] = "",
    mask: Annotated[
        str,
        typer.Option(
            "--mask",
            metavar="FILE",
            help="A picture or video of the same size: white is painted anew, black is kept.",
        ),
    ] = ...,  # type: ignore[assignment]
    fit: Fit = "cover",
    keep_known_pixels: KeepKnownPixels = True,
    *,
    options: JobOptions,
) -> None:
    """Paint a region of a video anew; the rest of it is known."""
    from vgen.cli.footage import plan_on_video
    from vgen.cli.jobs import fit_frames, load_pipeline, make_clip, say_fit

    fields = {"prompt": prompt, "mask": mask, "fit": fit, "keep_known_pixels": keep_known_pixels}
    job, frames = plan_on_video("inpaint", video, options, fields)
    white = read_white(mask, frames)
    job.notes += say_fit(video, (frames.shape[2], frames.shape[1]), job.request)
    job.notes.append(f"{mask}: {white.mean() / 2.55:.0f} % of the pixels are painted anew.")
    frames = fit_frames(frames, job.request)
    known = 1 - fit_frames(white, job.request)[..., 0] / 255
    pipe = load_pipeline("MaskedPredictionPipeline", job)
    from vgen.pipelines import VideoCondition

    make_clip(pipe, job, conditions=[VideoCondition(frames, mask=known)], keep_known_pixels=keep_known_pixels)


def read_white(mask: str, frames: np.ndarray) -> np.ndarray:
    """How white a mask is: uint8 [F, H, W, 3], all three channels the same, of the size of `frames`.

    Raises:
        MediaError: it cannot be read.
        RequestError: another size, fewer frames, or nothing of it is white.
    """
    from pathlib import Path

    import numpy as np

    from vgen.errors import RequestError
    from vgen.io.images import read_image
    from vgen.io.video import read_video

    if Path(mask).suffix.lower() in _PICTURES:
        found = np.asarray(read_image(mask).convert("L"))[None].repeat(len(frames), axis=0)
    else:
        clip = read_video(mask, max_frames=len(frames)).frames
        found = np.rint(clip @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)
    if found.shape[1:] != frames.shape[1:3]:
        raise RequestError(
            f"mask={mask!r} is {found.shape[2]} x {found.shape[1]} and the video {frames.shape[2]} x "
            f"{frames.shape[1]}: make it the same size."
        )
    if len(found) < len(frames):
        raise RequestError(
            f"mask={mask!r} has {len(found)} frames and {len(frames)} of the video are used: give a mask a frame, one "
            f"picture for all, or --num-frames {len(found)} or fewer."
        )
    if not found.any():
        raise RequestError(f"mask={mask!r} is black all over: nothing would be painted. White is what is painted anew.")
    return np.repeat(found[..., None], 3, axis=-1)
