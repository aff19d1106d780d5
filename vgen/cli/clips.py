"""Every command that makes a clip: its name, its arguments and what is its own among the options.

A command gathers the fields of a request; `vgen.jobs` carries it out. All that is an option of a request is made from
its declaration, see `vgen.cli.options`.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from vgen.cli import display
from vgen.cli.options import JobOptions, clip_command
from vgen.errors import RequestError, counted

EmptyPrompt = Annotated[str, typer.Argument(metavar="[PROMPT]", help="What the clip shows.")]
WhatHappens = Annotated[str, typer.Argument(metavar="[PROMPT]", help="What happens.")]
WhatFollows = Annotated[str, typer.Argument(metavar="[PROMPT]", help="What happens next.")]


def _make(task: str, options: JobOptions, /, **fields: Any) -> None:
    """Plan and run one request; options go before `fields`."""
    from vgen.jobs.plan import plan
    from vgen.jobs.run import run
    from vgen.request.request import GenerateRequest

    request = GenerateRequest.create(task=task, **{**fields, **options.fields})
    run(plan(request, options.output, options.overwrite, display.show), display.show)


@clip_command
def generate(
    prompt: Annotated[str | None, typer.Argument(metavar="PROMPT", help="What the clip shows.")] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            "--prompts",
            metavar="FILE",
            help="One prompt per line, -o names a folder (none).",
        ),
    ] = None,
    *,
    options: JobOptions,
) -> None:
    """Make a clip from text, or one per line of a file; clip number i then takes the seed --seed + i."""
    if prompts is None:
        _make("generate", options, prompt=prompt or "")
        return
    if prompt is not None:
        raise RequestError(f"prompt={prompt[:60]!r} and --prompts were both given; use one of them.")
    from vgen.jobs.many_clips import plan_clips, run_clips

    jobs, faults = plan_clips(prompts, options.fields, options.output, options.overwrite)
    for fault in faults:
        display.warn(f"{prompts}, {fault}", "vgen")
    if not jobs:
        raise RequestError(f"--prompts {prompts}: none of its {counted(len(faults), 'prompt')} can be used.")
    run_clips(jobs, display.show)
    if faults:
        raise typer.Exit(2)


@clip_command
def animate(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="The first frame: a picture.")],
    prompt: WhatHappens = "",
    *,
    options: JobOptions,
) -> None:
    """Make a clip that starts with a picture."""
    _make("animate", options, prompt=prompt, image=image)


@clip_command
def interpolate(
    first: Annotated[str, typer.Argument(metavar="FIRST", help="The first frame: a picture.")],
    last: Annotated[str, typer.Argument(metavar="LAST", help="The last frame: a picture.")],
    prompt: Annotated[str, typer.Argument(metavar="[PROMPT]", help="What happens between them.")] = "",
    *,
    options: JobOptions,
) -> None:
    """Make a clip that leads from one picture to another, over any number of pictures between."""
    _make("interpolate", options, prompt=prompt, first=first, last=last)


@clip_command
def predict(
    video: Annotated[str, typer.Argument(metavar="VIDEO", help="The clip to continue.")],
    prompt: WhatFollows = "",
    *,
    options: JobOptions,
) -> None:
    """Keep the first frames of a video and predict what follows them, or what came before."""
    _make("predict", options, prompt=prompt, video=video)


@clip_command
def loop(prompt: EmptyPrompt = "", *, options: JobOptions) -> None:
    """Make a clip that can be played in a circle: its first frame follows its last one.

    The model makes a clip that begins and ends with the same picture, and the second of the two is left out.
    """
    _make("loop", options, prompt=prompt)


@clip_command
def inpaint(
    video: Annotated[str, typer.Argument(metavar="VIDEO", help="The clip to change.")],
    prompt: EmptyPrompt = "",
    *,
    options: JobOptions,
) -> None:
    """Repaint a region of a video; the rest of it is known."""
    _make("inpaint", options, prompt=prompt, video=video)


@clip_command
def outpaint(
    video: Annotated[str, typer.Argument(metavar="VIDEO", help="The clip to widen.")],
    prompt: Annotated[str, typer.Argument(metavar="[PROMPT]", help="What the wider clip shows.")] = "",
    *,
    options: JobOptions,
) -> None:
    """Put a video in the middle of a larger clip (--width, --height), and paint what lies around it.

    A video that is larger than the clip is made smaller until it fits.
    """
    _make("outpaint", options, prompt=prompt, video=video)


@clip_command
def extend(
    video: Annotated[str, typer.Argument(metavar="VIDEO", help="The clip to continue; it is kept whole.")],
    prompt: WhatFollows = "",
    *,
    options: JobOptions,
) -> None:
    """Continue a video: windows of the model's length, each from the last frames of the one before.

    Interrupted, the same command resumes after the last whole window.
    """
    _make("extend", options, prompt=prompt, video=video)


@clip_command
def story(
    file: Annotated[str, typer.Argument(metavar="FILE.toml", help=r"[\[segment]] tables with prompt and seconds.")],
    *,
    options: JobOptions,
) -> None:
    """Make one clip from prompts that follow each other, of any length.

    Interrupted, the same command resumes after the last whole window.
    """
    from vgen.request.story import read_story

    script = read_story(file)
    segments = [part.model_dump(exclude_none=True) for part in script.segments]
    _make("story", options, **script.fields, segments=segments)


@clip_command
def restyle(
    video: Annotated[str, typer.Argument(metavar="VIDEO", help="The clip to start from.")],
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What it shows instead.")],
    *,
    options: JobOptions,
) -> None:
    """Make a clip from a video and a prompt: the video is noised in part and denoised again."""
    _make("restyle", options, prompt=prompt, video=video)


COMMANDS = (generate, animate, interpolate, predict, loop, inpaint, outpaint, extend, story, restyle)
