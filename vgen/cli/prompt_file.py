"""`vgen generate --prompts`: reading the file, and making its clips one after another with one loaded model."""

from __future__ import annotations

import contextlib
import secrets
from pathlib import Path
from typing import NamedTuple

import typer

from vgen.cli import display, processes
from vgen.cli.jobs import Job, Model, load_pipeline, make_clip, plan
from vgen.cli.options import JobOptions
from vgen.errors import MediaError, OutputError, RequestError, VgenError, counted
from vgen.io.files import check_writable, exists_message
from vgen.io.media.output import OutputKind, check_output, output_kind

MAX_BYTES = 10_000_000
"""Largest prompt file."""


class Line(NamedTuple):
    """A line that is not blank: its place among those, its number in the file, its text or what is wrong with it."""

    place: int
    number: int
    text: str
    fault: str | None


def read_prompts(path: str) -> list[Line]:
    """The lines of a prompt file; blank ones are skipped, a byte-order mark is dropped.

    Every line that is not blank has an index, good or bad, so that mending one line changes no other clip.

    Raises:
        MediaError: missing, not a file, or too large.
        RequestError: no line that is not blank.
    """
    try:
        if not Path(path).is_file():
            raise MediaError(f"--prompts {path}: there is no such file.")
        if Path(path).stat().st_size > MAX_BYTES:
            raise MediaError(f"--prompts {path} is larger than {MAX_BYTES:,} bytes; split it.")
        content = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        if isinstance(error, MediaError):
            raise
        raise MediaError(f"--prompts {path!r} cannot be read: {error}.") from None
    found: list[Line] = []
    for number, raw in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        try:
            text, fault = raw.decode("utf-8").strip(), None
        except UnicodeDecodeError as error:
            text, fault = "", f"byte {error.start + 1} is not UTF-8; save the file as UTF-8."
        if text or fault:
            found.append(Line(len(found), number, text, fault))
    if not found:
        raise RequestError(f"--prompts {path} holds no prompt: every line is blank.")
    return found


def generate_all(path: str, options: JobOptions) -> None:
    """Make a clip of every good line; bad ones are reported, and the exit code is then 2.

    Raises:
        VgenError: nothing can be made at all.
    """
    lines = read_prompts(path)
    folder = _check_folder(options, len(lines))
    jobs, faults = _plan_all(lines, folder, options)
    for fault in faults:
        display.say(f"vgen: {path}, {fault}", err=True)
    if not jobs:
        raise RequestError(f"--prompts {path}: none of its {counted(len(lines), 'prompt')} can be used.")
    prompts = [job.request.prompt for job in jobs]
    pipe = load_pipeline("TextToVideoPipeline", jobs[0], prompts)
    pipe.encode_ahead(prompts, jobs[0].request.negative_prompt)
    made = processes.leads() and not folder.exists()
    if processes.leads():
        folder.mkdir(exist_ok=True)
    try:
        for number, job in enumerate(jobs, start=1):
            display.set_part("clip", number, len(jobs))
            settled = {"device": jobs[0].request.device, "dtype": jobs[0].request.dtype}
            job.request = job.request.model_copy(update=settled)
            make_clip(pipe, job)
    finally:
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()
    if faults:
        raise typer.Exit(2)


def _plan_all(lines: list[Line], folder: Path, options: JobOptions) -> tuple[list[Job], list[str]]:
    """A job for each good line, and a sentence for each bad one; errors that concern all of them are raised."""
    from vgen.request.request import GenerateRequest

    common = GenerateRequest.create(**{"prompt": "a prompt", **options.fields})
    model = Model.find(common.model)
    plan(common, model, str(folder / "0000.mp4"), options.overwrite)
    seed = common.seed if common.seed is not None else processes.agree(secrets.randbelow(2**32))
    GenerateRequest.create(prompt="the last one", seed=seed + len(lines) - 1)
    jobs, faults = [], []
    for line in lines:
        fault = line.fault
        if fault is None:
            fields = {**options.fields, "prompt": line.text, "seed": seed + line.place}
            try:
                request = GenerateRequest.create(**fields)
                jobs.append(plan(request, model, str(folder / f"{line.place:04d}.mp4"), options.overwrite))
            except VgenError as error:
                fault = str(error)
        if fault is not None:
            faults.append(f"line {line.number}: {fault}")
    return jobs, faults


def _check_folder(options: JobOptions, count: int) -> Path:
    """The folder for the clips, checked but not made."""
    if output_kind(options.output) is not OutputKind.FOLDER:
        raise OutputError(f"output={options.output!r} names a file; with --prompts give a folder, for instance clips/.")
    folder = Path(options.output)
    if not folder.is_dir():
        check_output(options.output)
        return folder
    check_writable(folder)
    for index in range(count):
        clip = folder / f"{index:04d}.mp4"
        if clip.exists() and not options.overwrite:
            raise OutputError(exists_message(clip))
    return folder
