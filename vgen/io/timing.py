"""Frame rates: from the instants at which frames are shown to one constant rate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vgen.errors import MediaError
from vgen.io.limits import frame_limit

if TYPE_CHECKING:
    import numpy as np


class TimedFrames(NamedTuple):
    """Frames as they lie in a file, before the frame rate is settled.

    Attributes:
        frames: each uint8 [H, W, 3].
        times: seconds at which each frame is first shown.
        tick: seconds, the precision of `times` in the file.
        stated_rate: frames per second that the file states, if it does.
        notes: what was changed so far, one sentence each.
    """

    frames: list[np.ndarray]
    times: list[float]
    tick: float
    stated_rate: float | None = None
    notes: tuple[str, ...] = ()


def constant_rate(path: Path, timed: TimedFrames, max_frames: int | None) -> tuple[np.ndarray, float, tuple[str, ...]]:
    """Settle the frame rate; resample, and say so, where the file has no constant one.

    A rate is constant if every frame lies within one tick, or a fiftieth of a frame, of where that rate puts it.

    Args:
        path: file, for messages.
        timed: at least one frame.
        max_frames: most frames to return.
    Returns:
        frames uint8 [F, H, W, 3], frames per second, notes.
    Raises:
        MediaError: no frame, or resampling would give more frames than may be read.
    """
    import numpy as np

    if not timed.frames:
        raise MediaError(f"{path} has no frames.")
    if len(timed.frames) == 1:
        return np.stack(timed.frames), timed.stated_rate or 1.0, timed.notes
    times = np.asarray(timed.times)
    order = np.argsort(times, kind="stable")
    times, frames = times[order] - times[order[0]], [timed.frames[i] for i in order]
    mean = (len(times) - 1) / max(times[-1], 1e-9)
    for rate in (timed.stated_rate, float(round(mean)), mean):
        if rate and np.abs(times - np.arange(len(times)) / rate).max() <= 1.01 * timed.tick + 0.02 / rate:
            return np.stack(frames), rate, timed.notes
    rate = max(1.0, float(round(mean)))
    height, width = frames[0].shape[:2]
    wanted = int(np.floor(times[-1] * rate + 1e-6)) + 1
    count = min(wanted, frame_limit(path, width, height, max_frames, wanted))
    chosen = np.searchsorted(times, np.arange(count) / rate + 1e-6, side="right") - 1
    gaps = np.diff(times)
    note = (
        f"The frame rate varies between {1 / gaps.max():.4g} and {1 / max(gaps.min(), 1e-6):.4g} frames per second; "
        f"{len(frames)} frames were resampled to {count} at {rate:g}."
    )
    return np.stack([frames[i] for i in chosen]), rate, (*timed.notes, note)
