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
            help="How much is made anew: the share of the denoising steps that are run, above 0 to 1. 0.6 if left out.",
        ),
    ] = None,
    fit: Fit = "cover",
    *,
    options: JobOptions,
) -> None:
    """Make a clip from a video and a prompt: the video is noised in part and denoised anew."""
    from vgen.cli.jobs import Model, ask, fit_frames, load_pipeline, make_clip, plan, say_fit
    from vgen.io.video import read_video

    fields = {"prompt": prompt, "video": video, "fit": fit, "denoise_strength": strength, **options.fields}
    request = ask("restyle", options.output, options.overwrite, fields)
    model = Model.find(request.model)
    clip = read_video(video, max_frames=request.num_frames or model.defaults.get("num_frames"))
    job = plan(request, model, options.output, options.overwrite, len(clip.frames))
    job.notes += [f"{video}: {note}" for note in clip.notes]
    frames = clip.frames[: job.request.num_frames]
    if len(frames) < len(clip.frames):
        job.notes.append(f"{video}: the first {len(frames)} of its frames are used, which fit the model.")
    if abs(clip.frame_rate - job.request.frame_rate) > 0.01 * clip.frame_rate:
        job.notes.append(
            f"{video} runs at {clip.frame_rate:g} frames per second, the clip at {job.request.frame_rate:g}: its "
            "frames are taken one by one, so its motion changes speed. --frame-rate sets another rate."
        )
    job.notes += say_fit(video, (frames.shape[2], frames.shape[1]), job.request)
    fitted = fit_frames(frames, job.request)
    make_clip(load_pipeline("VideoToVideoPipeline", job), job, video=fitted)
