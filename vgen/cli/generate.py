"""`vgen generate`: a clip from text, or a folder of clips from a file of prompts."""

from __future__ import annotations

from typing import Annotated

import typer

from vgen.cli.options import JobOptions, with_job_options
from vgen.errors import RequestError


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
    if draft_steps is not None:
        options.fields["draft_steps"] = draft_steps
    if prompts is not None:
        if prompt is not None:
            raise RequestError(f"prompt={prompt[:60]!r} and --prompts were both given; use one of them.")
        from vgen.cli.prompt_file import generate_all

        generate_all(prompts, options)
        return
    from vgen.cli.jobs import Model, ask, load_pipeline, make_clip, plan

    request = ask("generate", options.output, options.overwrite, {"prompt": prompt or "", **options.fields})
    job = plan(request, Model.find(request.model), options.output, options.overwrite)
    make_clip(load_pipeline("TextToVideoPipeline", job), job)
