"""`vgen predict`: a clip that goes on from the frames of a video."""

from __future__ import annotations

from typing import Annotated

import typer

from vgen.cli.options import Fit, InputCrf, JobOptions, KeepKnownPixels, with_job_options
from vgen.wording import counted


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
    from vgen.cli.footage import say_rate
    from vgen.cli.jobs import Model, ask, fit_frames, load_pipeline, make_clip, plan, say_fit
    from vgen.io.video import read_video

    fields = {"prompt": prompt, "video": video, "fit": fit, "keep_known_pixels": keep_known_pixels, **options.fields}
    fields |= {"keep_frames": keep_frames, "backward": backward or None, "input_crf": input_crf}
    request = ask("predict", options.output, options.overwrite, fields)
    model = Model.find(request.model)
    clip = read_video(video, max_frames=request.resolve(model.defaults, model.strides).keep_frames)
    job = plan(request, model, options.output, options.overwrite, len(clip.frames))
    known = clip.frames[: job.request.keep_frames]
    job.notes += [f"{video}: {note}" for note in clip.notes]
    first = "first frame" if len(known) == 1 else f"first {counted(len(known), 'frame')}"
    job.notes.append(f"{video}: the clip {'ends' if backward else 'starts'} with its {first}.")
    job.notes += say_rate(video, clip.frame_rate, job.request.frame_rate)
    job.notes += say_fit(video, (known.shape[2], known.shape[1]), job.request)
    known = fit_frames(known, job.request)
    pipe = load_pipeline("MaskedPredictionPipeline", job)
    from vgen.pipelines import VideoCondition

    conditions = [VideoCondition(known, job.request.num_frames - len(known) if backward else 0)]
    make_clip(pipe, job, conditions=conditions, keep_known_pixels=keep_known_pixels)
