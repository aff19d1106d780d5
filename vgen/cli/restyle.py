"""`vgen restyle`: a clip made anew from another one."""

from __future__ import annotations

from typing import Annotated

import typer

from vgen.cli.options import Fit, JobOptions, with_job_options


@with_job_options
def restyle(
    video: Annotated[str, typer.Argument(metavar="VIDEO", help="The clip to start from.")],
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What it shows instead.")],
    strength: Annotated[
        str | None,
        typer.Option(
            "--strength",
            metavar="S",
            help="How much is made anew: the share of the denoising steps that are run, above 0 to 1.",
            show_default="0.6",
        ),
    ] = None,
    fit: Fit = "cover",
    *,
    options: JobOptions,
) -> None:
    """Make a clip from a video and a prompt: the video is noised in part and denoised anew."""
    from vgen.cli.footage import plan_on_video
    from vgen.cli.jobs import load_pipeline, make_clip

    fields = {"prompt": prompt, "fit": fit, "denoise_strength": strength}
    job, clip = plan_on_video("restyle", video, options, fields)
    make_clip(load_pipeline("VideoToVideoPipeline", job), job, video=clip.frames)
