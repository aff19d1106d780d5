"""Footage of any length, frame by frame: the same frames that `read_video` gives, without holding them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vgen.errors import MediaError
from vgen.io.containers import FOLDER, GIF, identify, local_file
from vgen.io.demux import open_video
from vgen.io.timing import settle_rate
from vgen.io.video_read import check_count, frame_notes, read_video, strict_frames, to_rgb

if TYPE_CHECKING:
    import numpy as np

STREAM_SECONDS = 3600.0
"""Longest time that going through one file may take."""


class TimedFrame(NamedTuple):
    """A frame as it lies in the file: uint8 [H, W, 3], RGB, upright, and the second at which it is first shown."""

    picture: np.ndarray
    seconds: float


class Timeline(NamedTuple):
    """What going through a whole file has settled.

    Attributes:
        num_decoded: frames in the file, counted by decoding.
        frame_rate: frames per second of the clip that `read_video` would give.
        chosen: for each frame of that clip the index of the decoded one; None: they are the same.
        notes: what was changed, one sentence each.
    """

    num_decoded: int
    frame_rate: float
    chosen: tuple[int, ...] | None
    notes: tuple[str, ...]

    @property
    def num_frames(self) -> int:
        """Frames of the clip."""
        return self.num_decoded if self.chosen is None else len(self.chosen)

    def decoded_index(self, frame: int) -> int:
        """Which decoded frame is shown as frame `frame` of the clip."""
        return frame if self.chosen is None else self.chosen[frame]


class FootageStream:
    """Goes through a video file once; `timeline` is there when the last frame was taken.

    Args:
        path: mp4, mov, webm, mkv, avi or gif file, or a folder of png files.
        time_limit: seconds after which it is given up.
    Raises:
        MediaError: on the way, everything that `read_video` refuses but sheer length.
    """

    def __init__(self, path: str | Path, time_limit: float = STREAM_SECONDS) -> None:
        self.path = local_file(path, "video")
        self.container = identify(self.path)
        self.time_limit = time_limit
        self._timeline: Timeline | None = None

    @property
    def timeline(self) -> Timeline:
        """Settled by the whole file."""
        assert self._timeline is not None, "the stream has not been read to its end"
        return self._timeline

    def __iter__(self) -> Iterator[TimedFrame]:
        """Frames in the order in which they are shown."""
        if self.container in (FOLDER, GIF):
            clip = read_video(self.path)
            for place, picture in enumerate(clip.frames):
                yield TimedFrame(picture, place / clip.frame_rate)
            self._timeline = Timeline(len(clip.frames), clip.frame_rate, None, clip.notes)
            return
        yield from self._decode()

    def _decode(self) -> Iterator[TimedFrame]:
        times: list[float] = []
        notes: list[str] = []
        size: tuple[int, ...] | None = None
        with open_video(self.path, self.container) as (opened, stream):
            rate = float(stream.average_rate or stream.guessed_rate or 0)
            aspect = stream.codec_context.sample_aspect_ratio
            for frame in strict_frames(self.path, opened, stream, time.monotonic() + self.time_limit):
                picture = to_rgb(frame, aspect)
                if size is None:
                    notes.extend(frame_notes(self.path, frame, aspect))
                elif picture.shape != size:
                    raise MediaError(f"{self.path} changes its frame size after {len(times)} frames; that is not read.")
                size = picture.shape
                known = frame.pts is not None and stream.time_base
                seconds = float(frame.pts * stream.time_base) if known else len(times) / (rate or 25)
                if times and seconds < times[-1]:
                    raise MediaError(f"{self.path} shows its frames out of order after {len(times)}; re-encode it.")
                times.append(seconds)
                yield TimedFrame(picture, seconds)
            check_count(self.path, stream, times, rate)
            tick = float(stream.time_base or 0)
        self._timeline = _settle(times, tick, rate or None, notes)


def _settle(times: Sequence[float], tick: float, rate: float | None, notes: list[str]) -> Timeline:
    import numpy as np

    if len(times) == 1:
        return Timeline(1, rate or 1.0, None, tuple(notes))
    settled = settle_rate(np.asarray(times), tick, rate)
    if settled.chosen is None:
        return Timeline(len(times), settled.frame_rate, None, tuple(notes))
    chosen = tuple(int(index) for index in settled.chosen)
    return Timeline(len(times), settled.frame_rate, chosen, (*notes, settled.note(len(times), len(chosen))))
