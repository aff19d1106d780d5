"""VBench's layout: PROMPT-INDEX.mp4, five per prompt, in a folder that holds nothing else."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from vgen.errors import OutputError, RequestError
from vgen.io.files import check_writable, write_json
from vgen.training.data.sprites.world import answer_prompts

SAMPLES = 5
"""Clips per prompt that VBench looks for."""

_LONGEST = 255 - len(".aaaaaaaaaaaa.part")
"""Bytes of a file name, with room for the name of an unfinished one."""

_UNSAFE = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|\ud800-\udfff]')


class Clip(NamedTuple):
    """One clip to make: the file's name, its prompt, which of the prompt's samples it is, and its seed."""

    name: str
    prompt: str
    sample: int
    seed: int


def vbench_clips(prompts: Sequence[str], seed: int, samples: int = SAMPLES) -> list[Clip]:
    """What an export consists of; every clip has a seed of its own, counting up from `seed`.

    A prompt names its files word for word where that is a usable file name, which VBench's standard prompts are. Any
    other is made one: unusable characters become "_", and a long one is cut and numbered; VBench then finds the prompt
    in the table next to the folder (`--prompt_file`).

    Args:
        prompts: all different.
        seed: of the first clip.
        samples: clips per prompt.
    Raises:
        RequestError: no prompt, an empty one, or one twice.
    """
    if not prompts:
        raise RequestError("an export needs at least one prompt; the list is empty.")
    found: list[Clip] = []
    taken: set[str] = set()
    for number, prompt in enumerate(prompts):
        if not prompt.strip():
            raise RequestError(f"prompt {number + 1} is empty: VBench names clips by their prompts; give it words.")
        if prompt in prompts[:number]:
            raise RequestError(f"prompt {number + 1} ({prompt[:60]!r}) is there twice: its clips would have one name.")
        stem = _stem(prompt, number, taken)
        taken.add(stem.casefold())
        for sample in range(samples):
            found.append(Clip(f"{stem}-{sample}.mp4", prompt, sample, seed + len(found)))
    return found


def _stem(prompt: str, number: int, taken: set[str]) -> str:
    stem = _UNSAFE.sub("_", prompt)
    if stem.startswith("."):
        stem = "_" + stem[1:]
    room = _LONGEST - len("-00.mp4")
    if len(stem.encode()) <= room and stem.casefold() not in taken:
        return stem
    mark = f"~{number}"
    return stem.encode()[: room - len(mark)].decode(errors="ignore") + mark


def check_export_folder(folder: Path, clips: Sequence[Clip]) -> None:
    """Refuse a folder that VBench could not read: it takes every file in it for a clip.

    Raises:
        OutputError: not a folder, not writable, or with another file in it.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"--export-vbench {folder} exists already and is not a folder.")
    if not folder.absolute().parent.is_dir():
        raise OutputError(f"the folder {folder.absolute().parent} does not exist; make it first.")
    check_writable(folder if folder.is_dir() else folder.absolute().parent)
    names = {clip.name for clip in clips}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name not in names:
            raise OutputError(
                f"--export-vbench {folder} holds {path.name!r}, which is not a clip of this export; use another."
            )


def sprite_prompts(tier: int, count: int) -> list[str]:
    """`count` different prompts of SpriteWorld's test split."""
    found: dict[str, None] = {}
    asked = count
    while len(found) < count:
        found = dict.fromkeys(prompt for prompt, _ in answer_prompts("test", tier, asked))
        asked *= 2
    return list(found)[:count]


def write_prompt_table(folder: Path, clips: Sequence[Clip]) -> Path:
    """Write FOLDER.prompts.json, {path of the clip: prompt}: what VBench takes as --prompt_file for custom prompts.

    Next to the folder, since VBench takes every file inside for a clip.
    """
    target = folder.with_name(f"{folder.name}.prompts.json")
    table = {os.fspath(folder / clip.name): clip.prompt for clip in clips}
    write_json(target, table)
    return target
