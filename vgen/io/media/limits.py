"""What a file may ask of this machine before it is refused."""

from __future__ import annotations

from pathlib import Path

from vgen.errors import MediaError, bytes_text

MAX_PICTURE_PIXELS = 8192 * 8192
"""Most pixels of one picture or video frame: 67 million, 200 MB as RGB."""

MAX_FRAMES = 10_000
"""Most frames that one read returns."""

MAX_DECODED_BYTES = 2 * 1024**3
"""Most bytes of decoded RGB frames that one read returns."""

READ_SECONDS = 120.0
"""Longest time that decoding in one read may take."""

MAX_FRAME_RATE = 1000.0
"""Highest frame rate that is written."""

MAX_GIF_RATE = 50.0
"""The same of GIF, which counts hundredths of a second; players slow down delays below two of them."""


def frame_limit(path: Path, width: int, height: int, max_frames: int | None, declared: int) -> int:
    """How many frames of this size one read returns at most.

    Args:
        path: file, for the message.
        width: pixels.
        height: pixels.
        max_frames: what the caller asked for, or None for all.
        declared: frames that the file says it has, 0 if it says nothing.
    Raises:
        MediaError: that many frames are above the limits of this module.
    """
    limit = min(MAX_FRAMES, max(1, MAX_DECODED_BYTES // (width * height * 3)))
    wanted = declared if max_frames is None else min(max_frames, declared or max_frames)
    if wanted > limit:
        raise MediaError(
            f"{path} would give {wanted:,} frames of {width} x {height}, {bytes_text(wanted * width * height * 3)} "
            f"decoded; at most {limit:,} frames of this size are read at once. Read fewer frames or cut a shorter clip."
        )
    return limit if max_frames is None else min(max_frames, limit)
