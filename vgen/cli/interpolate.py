"""`vgen interpolate`: a clip between two pictures."""

from __future__ import annotations

from typing import Annotated

import typer

from vgen.cli.options import Fit, InputCrf, JobOptions, KeepKnownPixels, with_job_options


@with_job_options
def interpolate(
    first: Annotated[str, typer.Argument(metavar="FIRST", help="The first frame: a picture.")],
    last: Annotated[str, typer.Argument(metavar="LAST", help="The last frame: a picture.")],
    prompt: Annotated[str, typer.Argument(metavar="[PROMPT]", help="What happens between them.")] = "",
    keyframe: Annotated[
        list[str] | None,
        typer.Option(
            "--keyframe",
            metavar="FILE@INDEX",
            help="A picture between them, and which frame it is (from 0; negative from the end); may be given again.",
        ),
    ] = None,
    fit: Fit = "cover",
    keep_known_pixels: KeepKnownPixels = True,
    input_crf: InputCrf = None,
    *,
    options: JobOptions,
) -> None:
    """Make a clip that leads from one picture to another, over any number of pictures between."""
    from vgen.cli.jobs import Model, ask, load_pipeline, make_clip, plan, say_fit
    from vgen.errors import RequestError
    from vgen.io.media.images import fit_image, read_image
    from vgen.request.fields import check_keyframes, split_keyframe

    fields = {"prompt": prompt, "first": first, "last": last, "fit": fit, "keep_known_pixels": keep_known_pixels}
    fields |= {"keyframes": keyframe or None, "input_crf": input_crf, **options.fields}
    request = ask("interpolate", options.output, options.overwrite, fields)
    between = [split_keyframe(entry) for entry in request.keyframes or ()]
    places = [(first, 0), *between, (last, -1)]
    pictures = [read_image(file) for file, _ in places]
    job = plan(request, Model.find(request.model), options.output, options.overwrite)
    if job.request.num_frames < 2:
        raise RequestError(
            f"num_frames={job.request.num_frames} has no room for a first and a last frame; "
            f"use {job.model.strides.temporal + 1} or more."
        )
    check_keyframes(job.request.keyframes or (), job.request.num_frames)
    for (file, _), picture in zip(places, pictures, strict=True):
        job.notes += say_fit(file, picture.size, job.request)
    fitted = [fit_image(picture, job.request.height, job.request.width, job.request.fit) for picture in pictures]
    if not between:
        pipe = load_pipeline("InterpolationPipeline", job)
        make_clip(pipe, job, keep_known_pixels=keep_known_pixels, first=fitted[0], last=fitted[-1])
        return
    pipe = load_pipeline("MaskedPredictionPipeline", job)
    from vgen.pipelines import VideoCondition

    conditions = [VideoCondition(picture, index) for picture, (_, index) in zip(fitted, places, strict=True)]
    make_clip(pipe, job, conditions=conditions, keep_known_pixels=keep_known_pixels)
