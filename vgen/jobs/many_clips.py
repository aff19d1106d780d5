"""Clips of many prompts, one after another with one loaded model."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vgen.errors import MediaError, OutputError, RequestError, VgenError
from vgen.events import Observer, Part
from vgen.hub.model import Model
from vgen.io.files import check_writable, exists_message
from vgen.io.media.output import OutputKind, check_output, output_kind
from vgen.jobs import processes
from vgen.jobs.plan import Job, prepare
from vgen.jobs.run import Result, Runner
from vgen.jobs.steps import StepSequence
from vgen.request.request import GenerateRequest

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
    lines: list[Line] = []
    for number, raw in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        try:
            text, fault = raw.decode("utf-8").strip(), None
        except UnicodeDecodeError as error:
            text, fault = "", f"byte {error.start + 1} is not UTF-8; save the file as UTF-8."
        if text or fault:
            lines.append(Line(len(lines), number, text, fault))
    if not lines:
        raise RequestError(f"--prompts {path} holds no prompt: every line is blank.")
    return lines


def plan_clips(path: str, fields: Mapping[str, Any], output: str, overwrite: bool) -> tuple[list[Job], list[str]]:
    """A job for each good line of a prompt file, and a sentence for each bad one.

    Args:
        path: of the file.
        fields: of every request.
        output: a folder; its clips are 0000.mp4, 0001.mp4 and so on.
        overwrite: replace clips that are there.
    Raises:
        VgenError: nothing can be made at all.
    """
    lines = read_prompts(path)
    folder = _check_folder(output, overwrite, len(lines))
    common = GenerateRequest.create(**{"prompt": "a prompt", **fields})
    model = Model.find(common.model)
    prepare(common, model, str(folder / "0000.mp4"), overwrite)
    seed = common.seed if common.seed is not None else processes.agree(secrets.randbelow(2**32))
    GenerateRequest.create(prompt="the last one", seed=seed + len(lines) - 1)
    jobs, faults = [], []
    for line in lines:
        fault = line.fault
        if fault is None:
            try:
                request = GenerateRequest.create(**{**fields, "prompt": line.text, "seed": seed + line.place})
                jobs.append(prepare(request, model, str(folder / f"{line.place:04d}.mp4"), overwrite))
            except VgenError as error:
                fault = str(error)
        if fault is not None:
            faults.append(f"line {line.number}: {fault}")
    return jobs, faults


def run_clips(jobs: Sequence[Job], on_event: Observer) -> list[Result]:
    """Make clips in a folder of their own with one loaded model; the folder is made, and not left empty.

    Args:
        jobs: of task generate, that differ in prompt, seed and output alone.
        on_event: is given the events of all, whose steps are counted as one sequence.
    """
    folder, prompts = Path(jobs[0].output).parent, [job.request.prompt for job in jobs]
    is_new = processes.leads() and not folder.exists()
    steps, results = StepSequence(on_event, [None] * len(jobs)), []
    with Runner() as runner:
        try:
            if processes.leads():
                folder.mkdir(exist_ok=True)
            for number, job in enumerate(jobs, start=1):
                if len(jobs) > 1:
                    on_event(Part("clip", number, len(jobs)))
                results.append(runner.run(job, steps, prompts=prompts))
                steps.next_call()
        finally:
            if is_new:
                with contextlib.suppress(OSError):
                    folder.rmdir()
    return results


def _check_folder(output: str, overwrite: bool, count: int) -> Path:
    """The folder for the clips, checked but not made."""
    if output_kind(output) is not OutputKind.FOLDER:
        raise OutputError(f"output={output!r} names a file; with --prompts give a folder, for instance clips/.")
    folder = Path(output)
    if not folder.is_dir():
        check_output(output)
        return folder
    check_writable(folder)
    for index in range(count):
        clip = folder / f"{index:04d}.mp4"
        if clip.exists() and not overwrite:
            raise OutputError(exists_message(clip))
    return folder
