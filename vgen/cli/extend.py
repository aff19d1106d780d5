"""`vgen extend`: a video that goes on for as long as is wanted."""

from __future__ import annotations

from typing import Annotated

import typer

from vgen.cli.options import Fit, JobOptions, Overlap, Reference, with_job_options


@with_job_options
def extend(
    video: Annotated[str, typer.Argument(metavar="VIDEO", help="The clip to go on from; it is kept whole.")],
    prompt: Annotated[str, typer.Argument(metavar="[PROMPT]", help="What happens next.")] = "",
    seconds: Annotated[str, typer.Option("--seconds", metavar="S", help="How much is added.")] = ...,  # type: ignore[assignment]
    overlap: Overlap = None,
    reference: Reference = None,
    fit: Fit = "cover",
    *,
    options: JobOptions,
) -> None:
    """Let a video go on: windows of the model's length, each from the last frames of the one before.

    Interrupted, the same command goes on from the last whole window.
    """
    from vgen.cli.footage import read_fitted, say_video
    from vgen.cli.jobs import Model, ask, plan
    from vgen.cli.long import make_long, read_reference

    fields = {
        "video": video,
        "prompt": prompt,
        "seconds": seconds,
        "overlap": overlap,
        "fit": fit,
        "reference": reference,
    }
    request = ask("extend", options.output, options.overwrite, {**fields, **options.fields})
    model = Model.find(request.model)
    picture = read_reference(request)
    job = plan(request, model, options.output, options.overwrite)
    clip = read_fitted(video, job.request)
    say_video(job, video, clip)
    assert job.request.seconds is not None
    added = max(1, round(job.request.seconds * job.request.frame_rate))
    make_long(job, [added], [(prompt, {}, 0)], clip.frames, request.seed, picture)
