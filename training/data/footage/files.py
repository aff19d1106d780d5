"""Which files of a folder are footage, which belong to footage, and which are neither: each is counted as one."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vgen.errors import MediaError, RequestError
from vgen.io.walk import walk_files
from vgen.training.data.footage.records import ABOUT, CLIPS, Dropped

VIDEOS = {".mp4", ".mov", ".m4v", ".webm", ".mkv", ".avi", ".gif"}
IMAGES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
SOUNDS = {".mp3", ".wav", ".flac", ".m4a", ".aac", ".ogg", ".opus"}
MASK_ENDING = ".mask"
"""`NAME.mask.png` (or any other picture or video) next to `NAME.mp4` says where the loss counts; it is not footage."""


@dataclass(frozen=True)
class FootageFiles:
    """The resolved folder, its footage by name, files of footage or masks that cannot be used, and how many others of
    each kind it has."""

    root: Path
    files: tuple[Path, ...]
    skipped: tuple[Dropped, ...]
    others: Mapping[str, int]


def find_footage(footage: Path, data: Path) -> FootageFiles:
    """The footage in a folder, linked folders included, each once.

    Args:
        footage: a folder, or one file.
        data: folder of the data set to be made; like every other data set, it is not footage where it is inside.
    Raises:
        RequestError: the folder does not exist, or cannot be listed.
    """
    if not footage.exists():
        raise RequestError(f"{footage} does not exist; give a folder of videos and pictures, or one file.")
    if not footage.is_dir():
        return FootageFiles(_real(footage.parent), (_real(footage.parent) / footage.name,), (), {})
    root = _real(footage)
    try:
        met = walk_files(root)
    except OSError as error:
        raise RequestError(f"{error.filename or root} cannot be read: {error.strerror or error}.") from None
    stems = {path.with_suffix("") for path in met if path.suffix.lower() in VIDEOS | IMAGES and not is_mask(path)}
    data_sets = {path.parent for path in met if path.name == ABOUT and (path.parent / CLIPS).is_file()}
    files, skipped, others = [], [], Counter[str]()
    for path in met:
        kind, reason = _kind(path, root, stems), None
        if data_sets.intersection(path.parents) or _is_inside(path.parent, data, root):
            kind = "of a data set"
        elif kind == "mask":
            reason = _fault_of_mask(path, stems)
        elif kind == "footage" and not path.is_file():
            reason = f"{path} cannot be read: it is a link to nothing, or not a file."
        if reason is not None:
            skipped.append(Dropped(str(path), reason))
        elif kind == "footage":
            files.append(path)
        else:
            others[kind] += 1
    return FootageFiles(root, tuple(files), tuple(skipped), dict(sorted(others.items())))


def _real(folder: Path) -> Path:
    return Path(os.path.realpath(folder))


def _is_inside(folder: Path, data: Path, root: Path) -> bool:
    """Whether a folder belongs to the data set that is being made."""
    return not root.is_relative_to(_real(data)) and _real(folder).is_relative_to(_real(data))


def is_mask(path: Path) -> bool:
    """Whether a file is called like a mask."""
    return path.stem.lower().endswith(MASK_ENDING)


def _kind(path: Path, root: Path, stems: set[Path]) -> str:
    if any(part.startswith(".") for part in path.relative_to(root).parts):
        return "hidden"
    if is_mask(path):
        return "mask"
    if path.suffix.lower() in VIDEOS | IMAGES | SOUNDS:
        return "footage"
    if path.suffix.lower() == ".txt" and path.with_suffix("") in stems:
        return "caption file"
    return path.suffix.lower() or "without an ending"


def _masked(path: Path) -> Path:
    """The footage that a mask is of, without its ending."""
    return path.with_name(path.stem[: -len(MASK_ENDING)])


def _fault_of_mask(path: Path, stems: set[Path]) -> str | None:
    if path.suffix.lower() not in VIDEOS | IMAGES:
        endings = ", ".join(sorted(VIDEOS | IMAGES))
        return f"{path} is called like a mask and cannot be one: use a picture or a video ({endings})."
    return (
        None if _masked(path) in stems else f"{path} is a mask without footage: {_masked(path).name} is not next to it."
    )


def masks_in(folder: Path) -> dict[Path, list[Path]]:
    """What is called like a mask in a folder, by the footage that it would be of (without the ending)."""
    found: dict[Path, list[Path]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if is_mask(path) and path.is_file():
            found.setdefault(_masked(path), []).append(path)
    return found


def mask_of(source: Path, masks: Mapping[Path, list[Path]] | None = None) -> Path | None:
    """The mask next to a file of footage, if there is one: white is where the loss counts.

    Args:
        source: the footage.
        masks: of `masks_in` its folder; None lists it.
    Raises:
        MediaError: there are several, or one with another ending.
    """
    there = (masks_in(source.parent) if masks is None else masks).get(source.with_suffix(""), [])
    found = [path for path in there if path.suffix.lower() in VIDEOS | IMAGES]
    if len(found) > 1:
        raise MediaError(f"{source} has several masks: {', '.join(path.name for path in found)}; keep one of them.")
    if there and not found:
        endings = ", ".join(sorted(VIDEOS | IMAGES))
        raise MediaError(f"{there[0]} is not a mask that can be read: its ending must be one of {endings}.")
    return found[0] if found else None
