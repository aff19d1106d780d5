"""`vgen evaluate --export-vbench`: clips for VBench, which scores them with its own models."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from vgen.cli import display
from vgen.errors import OutputError, VgenError, counted
from vgen.hub.model import Model
from vgen.io.files import check_writable, exists_message
from vgen.jobs.contents import contents
from vgen.jobs.many_clips import run_clips
from vgen.jobs.plan import Job, prepare

if TYPE_CHECKING:
    from vgen.training.evaluate.vbench import Clip


def export_vbench(
    folder: str,
    fields: dict[str, Any],
    prompts: str | None,
    num_prompts: int,
    samples: int,
    overwrite: bool,
) -> None:
    """Make PROMPT-INDEX.mp4 for every prompt; clips that are there from the same request are kept.

    Args:
        folder: where the clips go; made if it is not there.
        fields: of the request: model, seed, device.
        prompts: a text file, one a line; None takes SpriteWorld's.
        num_prompts: how many of SpriteWorld's.
        samples: clips a prompt.
        overwrite: replace clips that other requests made.
    Raises:
        VgenError: something cannot be done; nothing was made.
    """
    from vgen.request.request import GenerateRequest
    from vgen.training.evaluate.vbench import read_prompt_file, sprite_prompts, vbench_clips, write_prompt_table

    target = Path(folder)
    common = GenerateRequest.create(**{"prompt": "a prompt", **fields})
    model = Model.find(common.model)
    texts = read_prompt_file(Path(prompts)) if prompts is not None else sprite_prompts(1, num_prompts)
    clips = vbench_clips(texts, common.seed if common.seed is not None else secrets.randbelow(2**31), samples)
    _check_folder(target, clips)
    jobs = [_job(clip, target, fields, model) for clip in clips]
    missing = [job for job in jobs if not _is_made(job, overwrite)]
    if missing:
        run_clips(missing, display.show)
    table = write_prompt_table(target, clips)
    kept = len(jobs) - len(missing)
    made = f"{counted(len(jobs), 'clip')} of {counted(len(texts), 'prompt')} ({kept} were there)"
    typer.echo(f"{target}: {made}; prompts in {table}")


def _job(clip: Clip, folder: Path, fields: dict[str, Any], model: Model) -> Job:
    from vgen.request.request import GenerateRequest

    try:
        request = GenerateRequest.create(**{**fields, "prompt": clip.prompt, "seed": clip.seed})
        return prepare(request, model, str(folder / clip.name), overwrite=True)
    except VgenError as error:
        raise type(error)(f"prompt {clip.prompt[:60]!r}: {error}") from None


def _check_folder(folder: Path, clips: list[Clip]) -> None:
    """Refuse a folder that VBench could not read: it takes every file in it for a clip."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"--export-vbench {folder} exists already and is not a folder.")
    if not folder.absolute().parent.is_dir():
        raise OutputError(f"the folder {folder.absolute().parent} does not exist; make it first.")
    check_writable(folder if folder.is_dir() else folder.absolute().parent)
    names = {clip.name for clip in clips}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name not in names:
            raise OutputError(
                f"--export-vbench {folder} holds {path.name!r}, which is no clip of this export; use another."
            )


def _is_made(job: Job, overwrite: bool) -> bool:
    """Whether the clip is there from this very request; another's is refused, or replaced with `overwrite`."""
    from vgen.io.media.codec.probe import read_metadata

    path, used = Path(job.output), contents(job.request, job.model.folder)
    if not path.exists():
        return False
    try:
        found = read_metadata(path) or {}
    except VgenError:
        found = {}
    wanted = {
        key: value
        for key, value in job.request.to_metadata(job.model.model_hash, contents=used).items()
        if key not in _OF_THE_MACHINE
    }
    if all(found.get(key) == value for key, value in wanted.items()):
        return True
    if overwrite:
        return False
    raise OutputError(f"{path} was made by another request. {exists_message(path)}")


_OF_THE_MACHINE = ("device", "dtype", "versions", "model")
