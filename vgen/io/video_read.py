"""Reading a clip: strict, upright, 8-bit RGB, at a constant frame rate, or a reason why not."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vgen.errors import MediaError, RequestError
from vgen.io.containers import FOLDER, GIF, Container, identify, local_file
from vgen.io.demux import check_tone, open_video
from vgen.io.limits import READ_SECONDS, frame_limit
from vgen.io.timing import TimedFrames, constant_rate

if TYPE_CHECKING:
    import numpy as np

_NOT_SHOWN = 2
"""Flag of an index entry that an edit list leaves out: decoded because others need it, never shown."""


class VideoClip(NamedTuple):
    """A decoded clip.

    Attributes:
        frames: uint8 [F, H, W, 3], RGB, upright.
        frame_rate: frames per second.
        notes: what was changed on the way in (resampled, turned, reduced to 8 bits), one sentence each.
    """

    frames: np.ndarray
    frame_rate: float
    notes: tuple[str, ...] = ()


def read_video(path: str | Path, max_frames: int | None = None, time_limit: float = READ_SECONDS) -> VideoClip:
    """Decode a local video file or a folder of PNG frames.

    Damage is an error, never a painted-over frame. Rotation is applied. Material with a variable frame rate is
    resampled to its mean rate by taking, at each instant, the frame shown then; `notes` says so. Non-square pixels
    are made square. HDR is refused; 10-bit SDR is reduced to 8 bits.

    Args:
        path: mp4, mov, webm, mkv, avi or gif file, or a folder of png files.
        max_frames: read only this many frames from the start; None reads all of them, up to the limits of
            `vgen.io.limits`.
        time_limit: seconds after which reading is given up.
    Raises:
        MediaError: missing, not a video, empty, damaged, truncated, too long or too large; names file and cause.
        RequestError: `max_frames` below 1.
    """
    if max_frames is not None and max_frames < 1:
        raise RequestError(f"max_frames={max_frames} must be 1 or more.")
    found = local_file(path, "video")
    container = identify(found)
    if container is FOLDER:
        from vgen.io.frame_folder import read_folder

        pictures, folder_rate, said = read_folder(found, max_frames)
        return VideoClip(pictures, folder_rate, tuple(said))
    if container is GIF:
        from vgen.io.gif import read_gif

        timed = read_gif(found, max_frames)
    else:
        timed = _decode(found, container, max_frames, time.monotonic() + time_limit)
    frames, rate, notes = constant_rate(found, timed, max_frames)
    return VideoClip(frames, rate, tuple(notes))


def measure_video(path: Path) -> tuple[int, int, int]:
    """(F, H, W) of a file or folder that this package wrote: everything is decoded, one frame at a time.

    Raises:
        MediaError: damaged.
    """
    container = identify(path)
    if container is FOLDER:
        from vgen.io.frame_folder import measure_folder

        return measure_folder(path)
    if container is GIF:
        from vgen.io.gif import measure_gif

        return measure_gif(path)
    with open_video(path, container) as (opened, stream):
        context = stream.codec_context
        rate = float(stream.average_rate or stream.guessed_rate or 25)
        times = [
            float(frame.pts * stream.time_base) if frame.pts is not None and stream.time_base else place / rate
            for place, frame in enumerate(strict_frames(path, opened, stream, float("inf")))
        ]
        check_count(path, stream, times, rate)
        return len(times), context.height, context.width


def _decode(path: Path, container: Container, max_frames: int | None, deadline: float) -> TimedFrames:
    notes: list[str] = []
    frames: list[np.ndarray] = []
    times: list[float] = []
    with open_video(path, container) as (opened, stream):
        context = stream.codec_context
        rate = stream.average_rate or stream.guessed_rate
        declared = stream.frames or round((opened.duration or 0) / 1e6 * float(rate or 0))
        limit = frame_limit(path, context.width, context.height, max_frames, declared)
        pixel_aspect = context.sample_aspect_ratio
        for frame in strict_frames(path, opened, stream, deadline):
            if len(frames) == limit:
                if max_frames is not None:
                    break
                raise _too_long(path, limit)
            if not frames:
                notes.extend(frame_notes(path, frame, pixel_aspect))
            picture = to_rgb(frame, pixel_aspect)
            if frames and picture.shape != frames[0].shape:
                raise MediaError(f"{path} changes its frame size after {len(frames)} frames; that is not read.")
            frames.append(picture)
            known = frame.pts is not None and stream.time_base
            times.append(float(frame.pts * stream.time_base) if known else len(times) / float(rate or 25))
        else:
            check_count(path, stream, times, float(rate or 0))
        tick = float(stream.time_base or 0)
    return TimedFrames(frames, times, tick, float(rate) if rate else None, tuple(notes))


def strict_frames(path: Path, opened: Any, stream: Any, deadline: float) -> Iterator[Any]:
    """Decoded frames in order; damage that the decoder only flags is raised too."""
    for packet in opened.demux(stream):
        if time.monotonic() > deadline:
            raise MediaError(f"{path} takes too long to decode; it was given up. Cut a shorter clip first.")
        if packet.is_corrupt:
            raise MediaError(f"{path} is damaged: the data at tick {packet.pts} is incomplete.")
        for frame in stream.codec_context.decode(packet if packet.size else None):
            if frame.is_corrupt:
                raise MediaError(f"{path} is damaged: a frame at tick {frame.pts} does not decode.")
            yield frame


def _too_long(path: Path, limit: int) -> MediaError:
    return MediaError(f"{path} has more than {limit:,} frames, the most that are read at once; cut a shorter clip.")


def check_count(path: Path, stream: Any, times: list[float], rate: float) -> None:
    """The whole stream was read: were all frames there that the file promises?"""
    count = len(times)
    if count == 0:
        raise MediaError(f"{path} has a video stream without a single frame.")
    shown = sum(not entry.flags & _NOT_SHOWN for entry in stream.index_entries)
    promised = min(stream.frames, shown)
    if count < promised:
        raise MediaError(f"{path} is damaged: {count} frames decode of the {promised} that it promises.")
    stated = re.fullmatch(r"(\d+):(\d+):(\d+\.?\d*)", stream.metadata.get("DURATION", ""))
    if stated and rate:
        hours, minutes, seconds = map(float, stated.groups())
        duration = 3600 * hours + 60 * minutes + seconds
        longest = max((after - before for before, after in pairwise(sorted(times))), default=0.0)
        if duration - max(times) > 1.5 * max(longest, 1 / rate) + 0.01:
            raise MediaError(f"{path} is damaged: its last frame is at {max(times):.2f} s of {duration:.2f} s.")


def frame_notes(path: Path, frame: Any, pixel_aspect: Fraction | None) -> Iterator[str]:
    check_tone(path, frame.color_trc, frame.color_primaries)
    bits = max((component.bits for component in frame.format.components), default=8)
    if bits > 8:
        yield f"{bits}-bit colour was reduced to 8 bits."
    if _turn(frame) is not None:
        yield "The frames were turned upright as the file asks."
    if pixel_aspect and pixel_aspect != 1:
        yield f"Pixels {pixel_aspect} as wide as high were made square."


def to_rgb(frame: Any, pixel_aspect: Fraction | None) -> np.ndarray:
    """uint8 [H, W, 3], upright, square pixels."""
    import numpy as np

    width = frame.width
    if pixel_aspect and pixel_aspect != 1:
        width = max(1, round(frame.width * pixel_aspect))
    picture = frame.reformat(width=width, height=frame.height, format="rgb24").to_ndarray()
    turn = _turn(frame)
    if turn is None:
        return picture
    a, b, c, d = turn
    if a == 0:
        picture, flip_columns, flip_rows = picture.transpose(1, 0, 2), c < 0, b < 0
    else:
        flip_columns, flip_rows = a < 0, d < 0
    return np.ascontiguousarray(picture[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1])


def _turn(frame: Any) -> tuple[int, int, int, int] | None:
    """Signs (a, b, c, d) of the display matrix x' = a x + c y, y' = b x + d y; None if there is nothing to do."""
    import numpy as np

    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return None
    matrix = np.frombuffer(data, dtype="<i4")
    a, b, c, d = (int(np.sign(round(matrix[i] / 65536))) for i in (0, 1, 3, 4))
    if (a, b, c, d) == (1, 0, 0, 1) or a * d - b * c == 0 or (a and b):
        return None
    return a, b, c, d
