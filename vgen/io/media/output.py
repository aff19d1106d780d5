"""What an output's name asks for, and whether it can be had: everything that is known before a clip is made."""

from __future__ import annotations

import math
import os
import re
from enum import StrEnum
from pathlib import Path

from vgen.errors import OutputError
from vgen.io.files import check_writable, exists_message
from vgen.io.media.frame_folder import is_frame_folder
from vgen.io.media.limits import MAX_FRAME_RATE, MAX_GIF_RATE


class OutputKind(StrEnum):
    """What is written, by the ending of the name."""

    MP4 = ".mp4"
    WEBM = ".webm"
    GIF = ".gif"
    FOLDER = ""


def output_kind(path: str | Path) -> OutputKind:
    """`.mp4` (H.264), `.webm` (VP9), `.gif`; a name without an ending, or one that ends in `/`, is a folder of PNG.

    Raises:
        OutputError: another ending, or no name at all.
    """
    text = str(path)
    if not text or re.search("[\0\ud800-\udfff]", str(Path(text).absolute())):
        raise OutputError(f"output={text!r} is not a usable file name; give one of plain text.")
    if text.endswith(("/", os.sep)):
        return OutputKind.FOLDER
    suffix = Path(text).suffix.lower()
    try:
        return OutputKind(suffix)
    except ValueError:
        raise OutputError(
            f"output={text!r} ends in {suffix!r}, which is not written; "
            "use .mp4, .webm, .gif, or a name ending in '/' for a folder of png frames."
        ) from None


def check_output(path: str | Path, overwrite: bool = False) -> OutputKind:
    """Check all that can be known about an output before anything is computed.

    Returns:
        the kind of output.
    Raises:
        OutputError: unknown ending, missing or unwritable parent folder, or something is there already.
    """
    kind = output_kind(path)
    target = Path(path)
    _check_parent(target)
    if kind is not OutputKind.FOLDER:
        if target.is_dir():
            raise OutputError(f"{target} is a folder; name a file in it.")
        if (target.exists() or target.is_symlink()) and not overwrite:
            raise OutputError(exists_message(target))
        return kind
    if target.exists() and not target.is_dir():
        raise OutputError(f"{target} exists already and is not a folder.")
    if target.is_dir() and any(target.iterdir()):
        if not overwrite:
            raise OutputError(exists_message(target))
        if not is_frame_folder(target):
            raise OutputError(f"{target} holds other things than frames; it is not replaced. Use another name.")
    return kind


def _check_parent(target: Path) -> None:
    parent = target.absolute().parent
    try:
        if not parent.exists():
            raise OutputError(f"the folder {parent} does not exist; make it first, or write {target.name} elsewhere.")
        if not parent.is_dir():
            raise OutputError(f"{parent} is not a folder, so {target.name} cannot be written into it.")
        check_writable(parent)
        os.lstat(target)
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputError(f"{target} cannot be written: {error.strerror or error}.") from None


def check_output_size(path: str | Path, height: int, width: int, frame_rate: float) -> None:
    """Check that the kind of output can hold this size and rate.

    Raises:
        OutputError: an odd side for mp4 (4:2:0 chroma needs even ones; webm, gif and png take any), a side too long
            for the format, or a frame rate it cannot express.
    """
    kind = output_kind(path)
    if not (math.isfinite(frame_rate) and 0 < frame_rate <= MAX_FRAME_RATE):
        raise OutputError(f"frame_rate={frame_rate} must be above 0 and at most {MAX_FRAME_RATE:g}.")
    if kind is OutputKind.GIF and frame_rate > MAX_GIF_RATE:
        raise OutputError(
            f"frame_rate={frame_rate:g} is more than a gif can show; at most {MAX_GIF_RATE:g}, or use mp4."
        )
    longest = 65535 if kind is OutputKind.GIF else 16384
    for field, value in (("height", height), ("width", width)):
        if not 1 <= value <= longest:
            raise OutputError(f"{field}={value} must be from 1 to {longest} for {path}.")
        if kind is OutputKind.MP4 and value % 2:
            nearest = f"{value - 1} or {value + 1}" if value > 1 else "2"
            raise OutputError(
                f"{field}={value} is odd, and H.264 in mp4 needs even sides; use {nearest}, "
                "or write .webm, .gif or a folder of png, which take any size."
            )
