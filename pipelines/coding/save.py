"""A clip as a pipeline gives it out, to a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange

from vgen.errors import RequestError
from vgen.io.media.video import check_output, write_video
from vgen.pipelines.coding.pixels import read_frames


def save_video(
    frames: Any,
    path: str | Path,
    *,
    fps: float,
    overwrite: bool = False,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Write a clip of any `output_type` but "latent" as the commands do.

        >>> save_video(pipe("a red circle moves to the left").frames[0], "circle.mp4", fps=8)

    Args:
        frames: one clip, or a batch of one; see `VideoCondition.frames`. Floats are rounded to 8 bits.
        path: ends in .mp4 (H.264), .webm (VP9) or .gif, or names a folder of png.
        fps: frames per second.
        overwrite: replace what is there.
        metadata: JSON object kept in the file, see `vgen.io.media.video.read_metadata`.
    Returns:
        `path` as a Path.
    Raises:
        RequestError: no clip, several clips, or a size or rate that the format cannot hold.
        OutputError: the file exists, or cannot be written there.
    """
    check_output(path, overwrite)
    if isinstance(fps, bool) or not isinstance(fps, (int, float)):
        raise RequestError(f"fps={fps!r} must be a number of frames per second, for instance 24.")
    while _is_batch_of_one(frames):
        frames = frames[0]
    if isinstance(frames, np.ndarray) and frames.dtype == np.uint8 and frames.ndim == 4:
        pixels = frames  # as it is: floats of a long clip would take four times as much
    else:
        read = read_frames(frames)
        pixels = rearrange((read * 255).round().byte(), "f c h w -> f h w c").numpy()
    return write_video(path, pixels, float(fps), metadata, overwrite)


def _is_batch_of_one(frames: Any) -> bool:
    if isinstance(frames, (list, tuple)):
        return len(frames) == 1 and (isinstance(frames[0], (list, tuple)) or getattr(frames[0], "ndim", 0) == 4)
    return getattr(frames, "ndim", 0) == 5 and len(frames) == 1
