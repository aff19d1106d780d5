"""`vgen inpaint`: a region of a video painted anew."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vgen.cli.options import Fit, JobOptions, KeepKnownPixels, with_job_options
from vgen.errors import counted

if TYPE_CHECKING:
    import numpy as np

    from vgen.cli.jobs import Job
    from vgen.io.media.video import VideoClip


@with_job_options
def inpaint(
    video: Annotated[str, typer.Argument(metavar="VIDEO", help="The clip to change.")],
    prompt: Annotated[str, typer.Argument(metavar="[PROMPT]", help="What the clip shows.")] = "",
    mask: Annotated[
        str,
        typer.Option(
            "--mask",
            metavar="FILE",
            help="A picture or video of the same size: white is painted anew, black and transparent places are kept.",
        ),
    ] = ...,  # type: ignore[assignment]
    fit: Fit = "cover",
    keep_known_pixels: KeepKnownPixels = True,
    *,
    options: JobOptions,
) -> None:
    """Paint a region of a video anew; the rest of it is known."""
    from vgen.cli.footage import plan_on_video
    from vgen.cli.jobs import load_pipeline, make_clip

    fields = {"prompt": prompt, "mask": mask, "fit": fit, "keep_known_pixels": keep_known_pixels}
    job, clip = plan_on_video("inpaint", video, options, fields)
    white = read_white(mask, job, clip)
    known = 1 - white / 255
    pipe = load_pipeline("MaskedPredictionPipeline", job)
    from vgen.pipelines import VideoCondition

    make_clip(pipe, job, conditions=[VideoCondition(clip.frames, mask=known)], keep_known_pixels=keep_known_pixels)


def read_white(mask: str, job: Job, clip: VideoClip) -> np.ndarray:
    """How white a mask is, fitted as its video was: uint8 [F, H, W].

    Raises:
        MediaError: it cannot be read, or nothing of it is white.
        RequestError: another size than the video's, or fewer frames.
    """
    import numpy as np

    from vgen.cli.jobs import fit_picture
    from vgen.errors import RequestError
    from vgen.io.media.enlarged import shrink
    from vgen.io.media.masks import read_mask_file

    count, (height, width) = len(clip.frames), clip.size
    found = read_mask_file(mask, max_frames=count)
    if clip.scale > 1 and found.white.shape[1:] == (height * clip.scale, width * clip.scale):  # drawn over the file
        found = found._replace(white=np.stack([shrink(white, clip.scale) for white in found.white]))
    if found.white.shape[1:] != (height, width):
        raise RequestError(
            f"mask={mask!r} is {found.white.shape[2]} x {found.white.shape[1]} and the video {width} x {height}: make "
            "it the same size."
        )
    if len(found.white) < count and not found.is_picture:
        raise RequestError(
            f"mask={mask!r} has {counted(len(found.white), 'frame')} and {count} of the video are used: give one mask "
            f"per frame, one picture for all, or --num-frames {len(found.white)} or fewer."
        )
    job.notes += [f"{mask}: {note}" for note in found.notes]
    if not found.is_picture and found.num_in_file != clip.num_in_file:
        job.notes.append(
            f"{mask}: it has {counted(found.num_in_file, 'frame')} and the video {clip.num_in_file:,}; the first "
            f"{count} of both are used, one by one."
        )
    job.notes.append(f"{mask}: {found.white.mean() / 2.55:.0f} % of the pixels are painted anew.")
    fitted = [fit_picture(np.repeat(white[..., None], 3, axis=-1), job.request)[..., 0] for white in found.white]
    return np.stack(fitted).repeat(count if found.is_picture else 1, axis=0)
