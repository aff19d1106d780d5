"""Reading a clip whole: strict, upright, 8-bit RGB, at a constant frame rate, or a reason why not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vgen.errors import RequestError
from vgen.io.media.codec.containers import identify
from vgen.io.media.codec.decode import StrictFrames
from vgen.io.media.codec.demux import open_video
from vgen.io.media.codec.stream import FootageStream
from vgen.io.media.images import WHITE
from vgen.io.media.limits import MAX_FRAMES, READ_SECONDS, frame_limit

if TYPE_CHECKING:
    import numpy as np


class VideoClip(NamedTuple):
    """A decoded clip.

    Attributes:
        frames: uint8 [F, H, W, 3], RGB, upright.
        frame_rate: frames per second.
        notes: what was changed on the way in (resampled, turned, reduced to 8 bits), one sentence each.
        size: (height, width) of the file's pictures, upright, before `fit`.
        num_in_file: frames that the file has, of which only the first may have been asked for.
        has_sound: whether it has a sound track, which is not read.
        scale: how much the file's pictures were enlarged when this package wrote them; undone.
    """

    frames: np.ndarray
    frame_rate: float
    notes: tuple[str, ...] = ()
    size: tuple[int, int] = (0, 0)
    num_in_file: int = 0
    has_sound: bool = False
    scale: int = 1


def read_video(
    path: str | Path,
    max_frames: int | None = None,
    time_limit: float = READ_SECONDS,
    fit: Callable[[np.ndarray], np.ndarray] | None = None,
    background: tuple[int, int, int] = WHITE,
) -> VideoClip:
    """Decode a local video file, an animated picture, or a folder of PNG frames.

    Damage is an error, never a painted-over frame. Rotation is applied, interlaced frames are deinterlaced, transparent
    places show `background`, non-square pixels are made square, HDR is refused and 10-bit SDR reduced to 8 bits. Where
    the frame rate varies, each frame is put at the nearest instant of the nominal rate (`timing.constant_rate`).

    Args:
        path: mp4, mov, webm, mkv or avi file, animated gif, webp or png, or a folder of png files.
        max_frames: read only this many frames from the start; None reads all of them, up to the limits of
            `vgen.io.media.limits`.
        time_limit: seconds of decoding after which reading is given up.
        fit: applied to each picture, uint8 [H, W, 3], as it is read, so that only pictures of its size are held.
        background: RGB behind transparent places; white by default.
    Raises:
        MediaError: missing, not a video, empty, damaged, truncated, too long or too large; names file and cause.
        RequestError: `max_frames` below 1.
    """
    import numpy as np

    if max_frames is not None and max_frames < 1:
        raise RequestError(f"max_frames={max_frames} must be 1 or more.")
    stream = FootageStream(path, time_limit, background)
    declared, finished = stream.outline.num_frames, True
    for place, picture in enumerate(stream):
        fitted = picture if fit is None else fit(picture)
        if not place:
            size = picture.shape[:2]
            limit = frame_limit(stream.path, fitted.shape[1], fitted.shape[0], max_frames, declared)
            frames = np.empty((min(declared or 64, limit) + 1, *fitted.shape), np.uint8)
        elif place == len(frames):
            frames = np.concatenate([frames, np.empty_like(frames)])
        frames[place] = fitted
        enough = max_frames is None or place >= MAX_FRAMES
        if place >= limit and (enough or stream.settle()[0].num_frames > limit):
            finished = False
            break  # what comes later changes nothing of what is wanted, or there is too much
    rate, notes = stream.settle()
    wanted = min(rate.num_frames, max_frames or rate.num_frames)
    frame_limit(stream.path, frames.shape[2], frames.shape[1], wanted, 0)
    shown = frames[:wanted] if rate.keeps_all else frames[rate.chosen(wanted)]
    in_file = rate.num_frames if finished else max(declared, rate.num_frames)
    return VideoClip(shown, rate.frames_per_second, notes, size, in_file, stream.outline.has_sound, stream.scale)


def measure_video(path: Path) -> tuple[int, int, int]:
    """(F, H, W) of a file or folder that this package wrote: everything is decoded, one frame at a time.

    Raises:
        MediaError: damaged.
    """
    container = identify(path)
    if container.demuxer is None:
        pictures = [picture.shape[:2] for picture in FootageStream(path).as_stored()]
        return len(pictures), *pictures[0]
    with open_video(path, container) as (opened, stream):
        context = stream.codec_context
        rate = float(stream.average_rate or stream.guessed_rate or 25)
        frames = StrictFrames(path, opened, stream, float("inf"))
        times = [
            float(frame.pts * stream.time_base) if frame.pts is not None and stream.time_base else place / rate
            for place, frame in enumerate(frames)
        ]
        frames.check_count(times, rate)
        return len(times), context.height, context.width
