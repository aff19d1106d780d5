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
    fit: Fit = "cover",
    keep_known_pixels: KeepKnownPixels = True,
    input_crf: InputCrf = None,
    *,
    options: JobOptions,
) -> None:
    """Make a clip that leads from one picture to another."""
    from vgen.cli.jobs import Model, ask, load_pipeline, make_clip, plan, say_fit
    from vgen.errors import RequestError
    from vgen.io.images import fit_image, read_image

    fields = {"prompt": prompt, "first": first, "last": last, "fit": fit, "keep_known_pixels": keep_known_pixels}
    request = ask(
        "interpolate", options.output, options.overwrite, {**fields, "input_crf": input_crf, **options.fields}
    )
    pictures = {"first": read_image(first), "last": read_image(last)}
    job = plan(request, Model.find(request.model), options.output, options.overwrite)
    if job.request.num_frames < 2:
        raise RequestError(
            f"num_frames={job.request.num_frames} has no room for a first and a last frame; "
            f"use {job.model.strides.temporal + 1} or more."
        )
    for name, picture in zip((first, last), pictures.values(), strict=True):
        job.notes += say_fit(name, picture.size, job.request)
    fitted = {
        key: fit_image(picture, job.request.height, job.request.width, job.request.fit)
        for key, picture in pictures.items()
    }
    pipe = load_pipeline("InterpolationPipeline", job)
    make_clip(pipe, job, keep_known_pixels=keep_known_pixels, **fitted)
