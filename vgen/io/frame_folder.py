"""A clip as a folder: 0000.png, 0001.png, ... and metadata.json with the frame rate and the request."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vgen.errors import MediaError
from vgen.io.limits import frame_limit

if TYPE_CHECKING:
    import numpy as np

    from vgen.io.take import FramesOnDisk

METADATA_FILE = "metadata.json"
ASSUMED_RATE = 24.0
"""Frames per second of a folder that states none."""


def frame_files(path: Path) -> list[Path]:
    """The PNG frames of a folder, in the order of the numbers in their names.

    Raises:
        MediaError: no PNG file, or a number is missing between the first and the last.
    """
    shown = (p for p in path.iterdir() if p.suffix.lower() == ".png" and not p.name.startswith("."))
    found = sorted(shown, key=lambda p: (_number(p) or 0, p.name))
    if not found:
        raise MediaError(f"{path} is a folder without a single .png frame.")
    numbers = [_number(p) for p in found]
    for before, after in pairwise(numbers):
        if before is not None and after is not None and after != before + 1:
            raise MediaError(f"{path} lacks the frames between number {before} and number {after}.")
    return found


def _number(path: Path) -> int | None:
    digits = re.search(r"(\d{1,18})$", path.stem)
    return int(digits.group(1)) if digits else None


def read_folder(path: Path, max_frames: int | None) -> tuple[np.ndarray, float, list[str]]:
    """Read the frames of a folder.

    Args:
        path: folder of PNG files of one size.
        max_frames: read only this many.
    Returns:
        frames uint8 [F, H, W, 3], frames per second, notes.
    Raises:
        MediaError: no frames, frames missing or of different sizes, a damaged one, or too many.
    """
    import numpy as np

    from vgen.io.images import read_image

    files = frame_files(path)
    facts = read_facts(path)
    declared = facts.get("num_frames")
    if isinstance(declared, int) and declared != len(files):
        raise MediaError(f"{path} holds {len(files)} frames, its {METADATA_FILE} says {declared}.")
    first = np.asarray(read_image(files[0]))
    height, width = first.shape[:2]
    wanted = files[: frame_limit(path, width, height, max_frames, len(files))]
    frames = np.empty((len(wanted), height, width, 3), np.uint8)
    for index, file in enumerate(wanted):
        picture = np.asarray(read_image(file))
        if picture.shape != first.shape:
            raise MediaError(f"{file} is {picture.shape[1]} x {picture.shape[0]}, the first frame {width} x {height}.")
        frames[index] = picture
    rate = facts.get("frame_rate")
    if isinstance(rate, (int, float)) and rate > 0:
        return frames, float(rate), []
    return frames, ASSUMED_RATE, [f"The folder states no frame rate; {ASSUMED_RATE:g} was assumed."]


def measure_folder(path: Path) -> tuple[int, int, int]:
    """(F, H, W) of a folder of frames; every one is decoded, and none kept.

    Raises:
        MediaError: a damaged frame, or one of another size.
    """
    from vgen.io.images import read_image

    sizes = [read_image(file).size for file in frame_files(path)]
    if len(set(sizes)) > 1:
        raise MediaError(f"{path} holds frames of several sizes.")
    return len(sizes), sizes[0][1], sizes[0][0]


def read_facts(path: Path) -> dict[str, Any]:
    """What metadata.json says: frame_rate, num_frames, metadata; empty if there is none.

    Raises:
        MediaError: it is there but no JSON object.
    """
    file = path / METADATA_FILE
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise MediaError(f"{file} is damaged: {error}.") from None
    if not isinstance(found, dict):
        raise MediaError(f"{file} is damaged: it holds no JSON object.")
    return found


def write_folder(
    path: Path, frames: np.ndarray | FramesOnDisk, frame_rate: float, metadata: Mapping[str, Any] | None
) -> None:
    """Fill an existing, empty folder.

    Args:
        path: folder.
        frames: uint8 [F, H, W, 3].
        frame_rate: frames per second.
        metadata: kept in metadata.json.
    """
    from PIL import Image

    for index, frame in enumerate(frames):
        with (path / f"{index:04d}.png").open("wb") as stream:
            Image.fromarray(frame).save(stream, "PNG")
            stream.flush()
            os.fsync(stream.fileno())
    facts = {"frame_rate": frame_rate, "num_frames": len(frames), "metadata": dict(metadata or {})}
    with (path / METADATA_FILE).open("w", encoding="ascii") as stream:
        json.dump(facts, stream, indent=1, allow_nan=False)
        stream.flush()
        os.fsync(stream.fileno())


def is_frame_folder(path: Path) -> bool:
    """Whether everything in a folder was put there by `write_folder`, so that it may be replaced."""
    return all(re.fullmatch(r"\d{4,}\.png", p.name) or p.name == METADATA_FILE for p in path.iterdir())
