"""`vgen story`: one long clip from timed prompts."""

from __future__ import annotations

from typing import Annotated

import typer

from vgen.cli.options import FitOfStory, JobOptions, Overlap, Reference, with_job_options


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

    Interrupted, the same command goes on from the last whole window.
    """
    import numpy as np

    from vgen.cli.jobs import Model, ask, plan, say_fit
    from vgen.cli.long import make_long, read_reference
    from vgen.io.media.images import fit_image, read_image
    from vgen.request.story import read_story

    told = read_story(file)
    given = {"overlap": overlap, "reference": reference, "fit": fit, **options.fields}
    fields = {**told.fields, **{name: value for name, value in given.items() if value is not None}}
    segments = [segment.model_dump(exclude_none=True) for segment in told.segments]
    request = ask("story", options.output, options.overwrite, {**fields, "segments": segments})
    picture = None if request.image is None else read_image(request.image)
    looks = read_reference(request)
    job = plan(request, Model.find(request.model), options.output, options.overwrite)
    start = None
    if picture is not None and request.image is not None:
        job.notes += say_fit(request.image, picture.size, job.request)
        fitted = fit_image(picture, job.request.height, job.request.width, job.request.fit)
        start = np.asarray(fitted)[None]
    rate = job.request.frame_rate
    lengths = [segment.length(rate) for segment in told.segments]
    lengths[0] = max(1, lengths[0] - (start is not None))
    parts = [(part.prompt, part.settings, round(part.cross_fade * rate)) for part in told.segments]
    make_long(job, lengths, parts, start, request.seed, looks)
