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
    frames = [timed.frames[i] for i in order]
    settled = settle_rate(times[order], timed.tick, timed.stated_rate)
    if settled.chosen is None:
        return np.stack(frames), settled.frame_rate, timed.notes
    height, width = frames[0].shape[:2]
    count = min(len(settled.chosen), frame_limit(path, width, height, max_frames, len(settled.chosen)))
    note = settled.note(len(frames), count)
    return np.stack([frames[i] for i in settled.chosen[:count]]), settled.frame_rate, (*timed.notes, note)


class SettledRate(NamedTuple):
    """One constant rate for given instants.

    Attributes:
        frame_rate: frames per second.
        chosen: at each instant of that rate the index of the frame shown then; None where the rate was constant.
        slowest, fastest: rates between the frames as they are.
    """

    frame_rate: float
    chosen: np.ndarray | None
    slowest: float
    fastest: float

    def note(self, before: int, after: int) -> str:
        """A sentence that states the resampling."""
        return (
            f"The frame rate varies between {self.slowest:.4g} and {self.fastest:.4g} frames per second; "
            f"{before} frames were resampled to {after} at {self.frame_rate:g}."
        )


def settle_rate(times: np.ndarray, tick: float, stated_rate: float | None) -> SettledRate:
    """The rule of `constant_rate`, for instants alone.

    Args:
        times: [F] seconds, ascending, F > 1.
        tick: seconds, the precision of `times`.
        stated_rate: frames per second that the file states, if it does.
    """
    import numpy as np

    times = times - times[0]
    mean = (len(times) - 1) / max(times[-1], 1e-9)
    gaps = np.diff(times)
    slowest, fastest = 1 / max(gaps.max(), 1e-6), 1 / max(gaps.min(), 1e-6)
    for rate in (stated_rate, float(round(mean)), mean):
        if rate and np.abs(times - np.arange(len(times)) / rate).max() <= 1.01 * tick + 0.02 / rate:
            return SettledRate(rate, None, slowest, fastest)
    rate = max(1.0, float(round(mean)))
    count = int(np.floor(times[-1] * rate + 1e-6)) + 1
    chosen = np.searchsorted(times, np.arange(count) / rate + 1e-6, side="right") - 1
    return SettledRate(rate, chosen, slowest, fastest)
