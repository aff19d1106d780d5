"""Every command that makes a clip: its name, its arguments and what is its own among the options.

A command gathers the fields of a request; `vgen.jobs` carries it out. The shared options are added by
`with_job_options`.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from vgen.cli import display
from vgen.cli.options import (
    Fit,
    FitOfStory,
    InputCrf,
    JobOptions,
    KeepKnownPixels,
    Overlap,
    Reference,
    with_job_options,
)
from vgen.errors import RequestError, counted

EmptyPrompt = Annotated[str, typer.Argument(metavar="[PROMPT]", help="What the clip shows.")]
WhatHappens = Annotated[str, typer.Argument(metavar="[PROMPT]", help="What happens.")]


def _make(task: str, options: JobOptions, /, **fields: Any) -> None:
    """Plan and run one request; its own fields that were not given are None."""
    from vgen.jobs.plan import plan
    from vgen.jobs.run import run
    from vgen.request.request import GenerateRequest

    given = {name: value for name, value in fields.items() if value is not None}
    request = GenerateRequest.create(task=task, **{**given, **options.fields})
    run(plan(request, options.output, options.overwrite, display.show), display.show)


@with_job_options
def generate(
    prompt: Annotated[str | None, typer.Argument(metavar="PROMPT", help="What the clip shows.")] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            "--prompts",
            metavar="FILE",
            help="One prompt per line; -o names a folder for 0000.mp4, 0001.mp4 and so on. "
            "Clip number i takes the seed --seed + i.",
            show_default="one clip, of PROMPT",
        ),
    ] = None,
    draft_steps: Annotated[
        str | None,
        typer.Option(
            "--draft-steps",
            metavar="N",
            help="Steps of a draft that is made first; the clip begins with its first frame. 0: none.",
            show_default="the model's",
        ),
    ] = None,
    *,
    options: JobOptions,
) -> None:
    """Make a clip from text."""
    if prompts is None:
        _make("generate", options, prompt=prompt or "", draft_steps=draft_steps)
        return
    if prompt is not None:
        raise RequestError(f"prompt={prompt[:60]!r} and --prompts were both given; use one of them.")
    from vgen.jobs.many_clips import plan_clips, run_clips

    drafted = {} if draft_steps is None else {"draft_steps": draft_steps}
    jobs, faults = plan_clips(prompts, {**options.fields, **drafted}, options.output, options.overwrite)
    for fault in faults:
        display.warn(f"{prompts}, {fault}", "vgen")
    if not jobs:
        raise RequestError(f"--prompts {prompts}: none of its {counted(len(faults), 'prompt')} can be used.")
    run_clips(jobs, display.show)
    if faults:
        raise typer.Exit(2)


@with_job_options
def animate(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="The first frame: a picture.")],
    prompt: WhatHappens = "",
    fit: Fit = "cover",
    keep_known_pixels: KeepKnownPixels = True,
    input_crf: InputCrf = None,
    *,
    options: JobOptions,
) -> None:
    """Make a clip that starts with a picture."""
    _make(
        "animate", options,
        prompt=prompt, image=image, fit=fit, keep_known_pixels=keep_known_pixels, input_crf=input_crf,
    )  # fmt: skip


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
    _make(
        "interpolate", options, prompt=prompt, first=first, last=last, keyframes=keyframe or None,
        fit=fit, keep_known_pixels=keep_known_pixels, input_crf=input_crf,
    )  # fmt: skip


@with_job_options
def predict(
    video: Annotated[str, typer.Argument(metavar="VIDEO", help="The clip to continue.")],
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
    _make(
        "predict", options, prompt=prompt, video=video, keep_frames=keep_frames, backward=backward or None,
        fit=fit, keep_known_pixels=keep_known_pixels, input_crf=input_crf,
    )  # fmt: skip


@with_job_options
def loop(
    prompt: EmptyPrompt = "",
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
    _make("loop", options, prompt=prompt, image=image, fit=fit, input_crf=input_crf)


@with_job_options
def inpaint(
    video: Annotated[str, typer.Argument(metavar="VIDEO", help="The clip to change.")],
    prompt: EmptyPrompt = "",
    mask: Annotated[
        str,
        typer.Option(
            "--mask",
            metavar="FILE",
            help="A picture or video of the same size: white is repainted, black and transparent places are kept.",
        ),
    ] = ...,  # type: ignore[assignment]
    fit: Fit = "cover",
    keep_known_pixels: KeepKnownPixels = True,
    *,
    options: JobOptions,
) -> None:
    """Repaint a region of a video; the rest of it is known."""
    _make(
        "inpaint", options, prompt=prompt, video=video, mask=mask, fit=fit, keep_known_pixels=keep_known_pixels
    )  # fmt: skip


@with_job_options
def outpaint(
    video: Annotated[str, typer.Argument(metavar="VIDEO", help="The clip to widen.")],
    prompt: Annotated[str, typer.Argument(metavar="[PROMPT]", help="What the wider clip shows.")] = "",
    keep_known_pixels: KeepKnownPixels = True,
    *,
    options: JobOptions,
) -> None:
    """Put a video in the middle of a larger clip (--width, --height), and paint what lies around it.

    A video that is larger than the clip is made smaller until it fits.
    """
    _make("outpaint", options, prompt=prompt, video=video, keep_known_pixels=keep_known_pixels)


@with_job_options
def extend(
    video: Annotated[str, typer.Argument(metavar="VIDEO", help="The clip to continue; it is kept whole.")],
    prompt: Annotated[str, typer.Argument(metavar="[PROMPT]", help="What happens next.")] = "",
    seconds: Annotated[str, typer.Option("--seconds", metavar="S", help="How much is added.")] = ...,  # type: ignore[assignment]
    overlap: Overlap = None,
    reference: Reference = None,
    fit: Fit = "cover",
    *,
    options: JobOptions,
) -> None:
    """Continue a video: windows of the model's length, each from the last frames of the one before.

    Interrupted, the same command resumes after the last whole window.
    """
    _make(
        "extend", options,
        prompt=prompt, video=video, seconds=seconds, overlap=overlap, reference=reference, fit=fit,
    )  # fmt: skip


@with_job_options
def story(
    file: Annotated[str, typer.Argument(metavar="FILE.toml", help=r"[\[segment]] tables with prompt and seconds.")],
    overlap: Overlap = None,
    reference: Reference = None,
    fit: FitOfStory = None,
    *,
    options: JobOptions,
) -> None:
    """Make one clip from prompts that follow each other, of any length.

    Interrupted, the same command resumes after the last whole window.
    """
    from vgen.request.story import read_story

    script = read_story(file)
    given = {"overlap": overlap, "reference": reference, "fit": fit}
    fields = {**script.fields, **{name: value for name, value in given.items() if value is not None}}
    _make("story", options, **fields, segments=[part.model_dump(exclude_none=True) for part in script.segments])


@with_job_options
def restyle(
    video: Annotated[str, typer.Argument(metavar="VIDEO", help="The clip to start from.")],
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What it shows instead.")],
    strength: Annotated[
        str | None,
        typer.Option(
            "--strength",
            metavar="S",
            help="How much is changed: the share of the denoising steps that are run, above 0 to 1.",
            show_default="0.6",
        ),
    ] = None,
    fit: Fit = "cover",
    *,
    options: JobOptions,
) -> None:
    """Make a clip from a video and a prompt: the video is noised in part and denoised again."""
    _make("restyle", options, prompt=prompt, video=video, denoise_strength=strength, fit=fit)


COMMANDS = (generate, animate, interpolate, predict, loop, inpaint, outpaint, extend, story, restyle)
