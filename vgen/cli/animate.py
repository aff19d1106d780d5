"""`vgen animate`: a clip that starts with a picture."""

from __future__ import annotations

from typing import Annotated

import typer

from vgen.cli.options import Fit, InputCrf, JobOptions, KeepKnownPixels, with_job_options


@with_job_options
def animate(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="The first frame: a picture.")],
    prompt: Annotated[str, typer.Argument(metavar="[PROMPT]", help="What happens.")] = "",
    fit: Fit = "cover",
    keep_known_pixels: KeepKnownPixels = True,
    input_crf: InputCrf = None,
    *,
    options: JobOptions,
) -> None:
    """Make a clip that starts with a picture."""
    from vgen.cli.jobs import Model, ask, load_pipeline, make_clip, plan, say_fit
    from vgen.io.media.images import fit_image, read_image

    fields = {"prompt": prompt, "image": image, "fit": fit, "keep_known_pixels": keep_known_pixels}
    request = ask("animate", options.output, options.overwrite, {**fields, "input_crf": input_crf, **options.fields})
    picture = read_image(image)
    job = plan(request, Model.find(request.model), options.output, options.overwrite)
    job.notes += say_fit(image, picture.size, job.request)
    fitted = fit_image(picture, job.request.height, job.request.width, job.request.fit)
    pipe = load_pipeline("ImageToVideoPipeline", job)
    make_clip(pipe, job, image=fitted, keep_known_pixels=keep_known_pixels)
