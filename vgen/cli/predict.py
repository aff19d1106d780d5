"""`vgen predict`: a clip that goes on from the frames of a video."""

from __future__ import annotations

from typing import Annotated

import typer

from vgen.cli.options import Fit, InputCrf, JobOptions, KeepKnownPixels, with_job_options
from vgen.errors import counted


@with_job_options
def predict(
    video: Annotated[str, typer.Argument(metavar="VIDEO", help="The clip to go on from.")],
    prompt: Annotated[str, typer.Argument(metavar="[PROMPT]", help="What happens next.")] = "",
    keep_frames: Annotated[
        str | None,
        typer.Option(
            "--keep-frames",
            metavar="N",
            help="Frames of VIDEO that start the clip: one more than a multiple of the model's temporal stride.",
            show_default="about half of the clip",
        ),
    ] = None,
    backward: Annotated[
        bool, typer.Option("--backward", help="Predict what came before: the kept frames end the clip.")
    ] = False,
    fit: Fit = "cover",
    keep_known_pixels: KeepKnownPixels = True,
    input_crf: InputCrf = None,
    *,
    options: JobOptions,
) -> None:
    """Keep the first frames of a video and predict what follows them, or what came before."""
    from vgen.cli.footage import read_fitted, say_video
    from vgen.cli.jobs import Model, ask, load_pipeline, make_clip, plan

    fields = {"prompt": prompt, "video": video, "fit": fit, "keep_known_pixels": keep_known_pixels, **options.fields}
    fields |= {"keep_frames": keep_frames, "backward": backward or None, "input_crf": input_crf}
    request = ask("predict", options.output, options.overwrite, fields)
    model = Model.find(request.model)
    wanted = request.resolve(model.defaults, model.strides)
    clip = read_fitted(video, wanted, wanted.keep_frames)
    job = plan(request, model, options.output, options.overwrite, len(clip.frames))
    known = clip.frames[: job.request.keep_frames]
    first = "first frame" if len(known) == 1 else f"first {counted(len(known), 'frame')}"
    job.notes.append(f"{video}: the clip {'ends' if backward else 'starts'} with its {first} of {clip.num_in_file:,}.")
    say_video(job, video, clip)
    pipe = load_pipeline("MaskedPredictionPipeline", job)
    from vgen.pipelines import VideoCondition

    conditions = [VideoCondition(known, job.request.num_frames - len(known) if backward else 0)]
    make_clip(pipe, job, conditions=conditions, keep_known_pixels=keep_known_pixels)
