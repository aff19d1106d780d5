"""A clip as a folder: 0000.png, 0001.png, ... and metadata.json with the frame rate and the request."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vgen.errors import MediaError, counted, listed
from vgen.io.files import read_json
from vgen.io.media.comment import dump_comment, load_comment
from vgen.io.media.enlarged import WrittenSize

if TYPE_CHECKING:
    import numpy as np

    from vgen.io.media.enlarged import Frames

METADATA_FILE = "metadata.json"
_PICTURES = {".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".exr"}
"""Endings of files that may be meant as frames, and are not read as such."""


def frame_files(path: Path) -> list[Path]:
    """The PNG frames of a folder, in the order of the last number in their names that varies.

    All names must be the same but for that number, which counts up without a gap. Hidden files, folders and files that
    are not pictures are ignored.

    Raises:
        MediaError: no PNG file, a file that does not belong, or a number that is missing or there twice; names it.
    """
    files = sorted(p for p in path.iterdir() if not p.name.startswith(".") and p.is_file())
    found = [p for p in files if p.suffix.lower() == ".png"]
    if not found:
        raise MediaError(f"{path} is a folder without a single .png frame.")
    strays = [p.name for p in files if p.suffix.lower() in _PICTURES]
    if strays:
        raise MediaError(
            f"{path} holds png frames and other pictures ({listed(strays, 3)}); keep only the frames there."
        )
    if len(found) == 1:
        return found
    pieces = {p: re.split(r"([0-9]+)", p.stem) for p in found}
    words, _ = Counter(tuple(parts[::2]) for parts in pieces.values()).most_common(1)[0]
    strays = [p.name for p, parts in pieces.items() if tuple(parts[::2]) != words]
    usual = next(p.name for p, parts in pieces.items() if tuple(parts[::2]) == words)
    if strays:
        raise MediaError(
            f"{path} holds frames of several names: {usual} and {listed(strays, 3)}; keep only one kind there."
        )
    numbers = {p: [int(digits) for digits in parts[1::2]] for p, parts in pieces.items()}
    varying = [column for column in range(len(words) - 1) if len({row[column] for row in numbers.values()}) > 1]
    if len(varying) > 1:
        other = next(p.name for p in found if numbers[p][varying[0]] != numbers[found[0]][varying[0]])
        raise MediaError(f"{path} holds frames whose names differ in several numbers: {found[0].name} and {other}.")
    index = varying[0] if varying else -1
    found.sort(key=lambda p: numbers[p][index])
    for before, after in pairwise(found):
        first, second = numbers[before][index], numbers[after][index]
        if first == second:
            raise MediaError(f"{path} has frame number {first} twice: {before.name} and {after.name}.")
        if second != first + 1:
            raise MediaError(
                f"{path} lacks the frames between number {first} and number {second} ({before.name}, {after.name})."
            )
    return found


def folder_rate(path: Path) -> float | None:
    """Frames per second that a folder's metadata.json states, if it does.

    Raises:
        MediaError: it is damaged.
    """
    rate = read_facts(path).get("frame_rate")
    return float(rate) if isinstance(rate, (int, float)) and rate > 0 else None


def folder_pictures(path: Path, background: tuple[int, int, int]) -> Iterator[np.ndarray]:
    """The frames of a folder as they are stored, uint8 [H, W, 3] each.

    Args:
        path: folder of PNG files of one size.
        background: RGB behind transparent places.
    Raises:
        MediaError: no frames, frames missing or of different sizes, or a damaged one.
    """
    import numpy as np

    from vgen.io.media.images import as_rgb, open_picture

    files = frame_files(path)
    declared = read_facts(path).get("num_frames")
    if isinstance(declared, int) and declared != len(files):
        raise MediaError(f"{path} holds {counted(len(files), 'frame')}, its {METADATA_FILE} says {declared}.")
    size: tuple[int, int] | None = None
    for file in files:
        with open_picture(file) as opened:
            picture = as_rgb(opened, background, str(file))
        size = size or picture.size
        if picture.size != size:
            raise MediaError(f"{file} is {picture.width} x {picture.height}, the first frame {size[0]} x {size[1]}.")
        yield np.asarray(picture)


def folder_metadata(path: Path) -> dict[str, Any] | None:
    """The request in a folder's metadata.json, or what its first frame says of it; None if neither does.

    Raises:
        MediaError: one of them is damaged.
    """
    from vgen.io.media.images import comment_of, open_picture

    found = read_facts(path).get("metadata")
    if isinstance(found, dict) and found:
        return found
    with open_picture(frame_files(path)[0]) as opened:
        return load_comment(comment_of(opened))


def read_facts(path: Path) -> dict[str, Any]:
    """What metadata.json says: frame_rate, num_frames, metadata; empty if there is none.

    Raises:
        MediaError: it is there but no JSON object.
    """
    file = path / METADATA_FILE
    return read_json(file, MediaError) if file.is_file() else {}


def write_folder(path: Path, frames: Frames, frame_rate: float, metadata: Mapping[str, Any] | None) -> None:
    """Fill an existing, empty folder.

    Args:
        path: folder.
        frames: uint8 [F, H, W, 3].
        frame_rate: frames per second.
        metadata: kept in metadata.json.
    """
    from PIL import Image, PngImagePlugin

    written = WrittenSize.read(metadata)
    facts = PngImagePlugin.PngInfo()
    if written is not None and metadata is not None:  # a frame may be given back in by itself
        facts.add_text("comment", dump_comment({**written._asdict(), "model_hash": metadata["model_hash"]}))
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(path / f"{index:04d}.png", "PNG", pnginfo=facts)
    content = {"frame_rate": frame_rate, "num_frames": len(frames), "metadata": dict(metadata or {})}
    (path / METADATA_FILE).write_text(json.dumps(content, indent=1, allow_nan=False), encoding="ascii")


def is_frame_folder(path: Path) -> bool:
    """Whether everything in a folder was put there by `write_folder`, so that it may be replaced."""
    return all(re.fullmatch(r"\d{4,}\.png", p.name) or p.name == METADATA_FILE for p in path.iterdir())
