"""`vgen loop`: a clip that ends where it begins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from vgen.cli import display
from vgen.cli.options import Fit, InputCrf, JobOptions, with_job_options

if TYPE_CHECKING:
    from vgen.cli.jobs import Job


@with_job_options
def loop(
    prompt: Annotated[str, typer.Argument(metavar="[PROMPT]", help="What the clip shows.")] = "",
    image: Annotated[
        str | None,
        typer.Option("--image", metavar="IMAGE", help="A picture to begin and end with; made from PROMPT if left out."),
    ] = None,
    fit: Fit = "cover",
    input_crf: InputCrf = None,
    *,
    options: JobOptions,
) -> None:
    """Make a clip that can be played in a circle: its first frame follows its last one.

    The model makes a clip that begins and ends with the same picture, and the second of the two is left out.
    """
    from vgen.cli.jobs import Model, ask, load_pipeline, make_clip, plan, say_fit
    from vgen.errors import RequestError
    from vgen.io.media.images import fit_image, read_image

    if not prompt.strip() and image is None:
        raise RequestError("prompt is empty and there is no --image: say what the clip shows, or what it begins with.")
    fields = {"prompt": prompt, "image": image, "fit": fit, "input_crf": input_crf}
    request = ask("loop", options.output, options.overwrite, {**fields, **options.fields})
    picture = None if image is None else read_image(image)
    job = plan(request, Model.find(request.model), options.output, options.overwrite)
    if job.request.num_frames < 2:
        raise RequestError(
            f"num_frames={job.request.num_frames} cannot move; use {job.model.strides.temporal + 1} or more."
        )
    if picture is not None and image is not None:
        job.notes += say_fit(image, picture.size, job.request)
        picture = fit_image(picture, job.request.height, job.request.width, job.request.fit)
    pipe = load_pipeline("MaskedPredictionPipeline", job)
    from vgen.pipelines import VideoCondition

    if picture is None:
        display.set_part("part", 1, 2)
        picture = _first_picture(pipe, job)
        display.set_part("part", 2, 2)
    ends = picture
    conditions = [VideoCondition(ends), VideoCondition(ends, frame_index=-1)]
    make_clip(pipe, job, conditions=conditions, keep_known_pixels=True, finish=lambda frames: frames[:-1])


def _first_picture(pipe: Any, job: Job) -> Any:
    """A single frame from the prompt, PIL."""
    import torch

    request = job.request
    made = pipe(
        prompt=request.prompt,
        **request.call_settings(),
        num_frames=1,
        generator=[torch.Generator("cpu").manual_seed(request.seed)],
        output_type="pil",
    )
    return made.frames[0][0]
