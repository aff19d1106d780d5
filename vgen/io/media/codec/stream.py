"""A clip of any kind and length, frame by frame: the one way in which videos are read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vgen.errors import MediaError, counted
from vgen.io.media.animation import Animation, measure_animation
from vgen.io.media.codec.containers import AVI, FOLDER, Container, identify, local_file
from vgen.io.media.codec.decode import StrictFrames
from vgen.io.media.codec.demux import open_video
from vgen.io.media.codec.frame_pixels import FramePixels
from vgen.io.media.codec.probe import read_metadata
from vgen.io.media.codec.timing import ASSUMED_RATE, FrameRate, constant_rate, nominal_rate
from vgen.io.media.enlarged import WrittenSize
from vgen.io.media.frame_folder import folder_pictures, folder_rate, frame_files
from vgen.io.media.images import WHITE
from vgen.io.media.limits import MAX_FRAMES

if TYPE_CHECKING:
    import numpy as np

STREAM_SECONDS = 3600.0
"""Longest time that decoding one file may take."""

MAX_RESAMPLED = 10_000_000
"""Most frames of one clip: timestamps that lie absurdly far apart give no more."""


class Outline(NamedTuple):
    """What is known of a clip before it is decoded.

    Attributes:
        num_frames: in the file; exact unless the file is very long; 0: not known.
        stated_rate: frames per second that the file states, if it does.
        nominal_rate: see `timing.nominal_rate`; None: to be found from the frames.
        tick: seconds, the precision of the file's timestamps.
        has_sound: whether the file has a sound track.
    """

    num_frames: int
    stated_rate: float | None
    nominal_rate: float | None
    tick: float
    has_sound: bool = False


class Timeline(NamedTuple):
    """What going through a file has settled.

    Attributes:
        num_decoded: frames in the file, counted by decoding.
        frame_rate: frames per second of the clip.
        chosen: for each frame of the clip the index of the decoded one; None: they are the same.
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


class FootageStream:
    """Goes through a clip once, and holds no frame: uint8 [H, W, 3], upright, RGB, in the order of their showing.

    Damage is an error, never a painted-over frame. Rotation is applied, interlaced frames are deinterlaced, non-square
    pixels are made square, transparent places show `background`, and HDR is refused.

    Args:
        path: mp4, mov, webm, mkv or avi file, animated gif, webp or png, or a folder of png files.
        time_limit: seconds of decoding after which it is given up.
        background: RGB behind transparent places.
    Attributes:
        outline: what is known before the first frame.
        scale: how much the pictures were enlarged when this package wrote the file; undone.
    Raises:
        MediaError: missing, not a video, empty, damaged, truncated, HDR; names file and cause.
    """

    def __init__(
        self, path: str | Path, time_limit: float = STREAM_SECONDS, background: tuple[int, int, int] = WHITE
    ) -> None:
        self.path = local_file(path, "video")
        self.container = identify(self.path)
        self.time_limit = time_limit
        self.background = background
        self.outline = _outline(self.path, self.container)
        self._written = WrittenSize.read(read_metadata(self.path))
        self.scale = 1 if self._written is None else self._written.scale
        self._times: list[float | None] = []
        self._notes: list[str] = []
        self._single_rate: float | None = None

    def __iter__(self) -> Iterator[np.ndarray]:
        for picture in self.as_stored():
            yield picture if self._written is None else self._written.undo(picture)

    def as_stored(self) -> Iterator[np.ndarray]:
        """The pictures in the file's own size."""
        if self.container is FOLDER:
            self._times, self._notes = [], []
            if folder_rate(self.path) is None:
                self._notes.append(f"The folder states no frame rate; {ASSUMED_RATE:g} was assumed.")
            yield from self._counted(folder_pictures(self.path, self.background))
        elif self.container.pillow is not None:
            animation = Animation(self.path, self.container.pillow, self.background)
            self._times, self._notes = animation.times, animation.notes
            yield from animation
            if len(animation.times) == 1:
                self._single_rate = 1 / animation.duration
        else:
            yield from self._decode()

    def _counted(self, pictures: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for picture in pictures:
            self._times.append(None)
            yield picture

    def _decode(self) -> Iterator[np.ndarray]:
        with open_video(self.path, self.container) as (opened, stream):
            pixels = FramePixels(self.path, stream, self.background)
            self._times, self._notes = pixels.times, pixels.notes
            frames = StrictFrames(self.path, opened, stream, self.time_limit)
            yield from pixels.convert(frames)
            known = [seconds for seconds in self._times if seconds is not None]
            frames.check_count(known or [0.0], self.outline.stated_rate or 0.0)
            if frames.num_cut:
                self._notes.append(
                    f"{counted(frames.num_cut, 'frame')} at the start left out: what they need was cut off."
                )

    def settle(self) -> tuple[FrameRate, tuple[str, ...]]:
        """The constant rate of the frames so far, and everything that was changed, one sentence each.

        Raises:
            MediaError: there is no frame, or the rate would give too many.
        """
        if not self._times:
            raise MediaError(f"{self.path} has no frames.")
        import numpy as np

        outline, notes = self.outline, list(self._notes)
        times = [seconds for seconds in self._times if seconds is not None]
        stated = self._single_rate or outline.stated_rate
        backwards = next((place for place, (a, b) in enumerate(pairwise(times)) if b < a), None)
        if len(times) < len(self._times) or backwards is not None:
            if backwards is not None:
                if self.container is not AVI:  # whose timestamps are those of decoding
                    notes.append(f"The timestamps run backwards after frame {backwards + 1}; they were ignored.")
            elif times:
                missing = counted(len(self._times) - len(times), "frame")
                notes.append(f"The timestamps of {missing} are missing; all were ignored.")
            rate = outline.nominal_rate or stated or ASSUMED_RATE
            times = [place / rate for place in range(len(self._times))]
        nominal = outline.nominal_rate or nominal_rate(np.diff(times), outline.tick, stated)
        settled = constant_rate(times, outline.tick, nominal, stated)
        if settled.num_frames > MAX_RESAMPLED:
            raise MediaError(
                f"{self.path} would give {settled.num_frames:,} frames at {settled.frames_per_second:g} per second; "
                f"at most {MAX_RESAMPLED:,} are read. Cut a shorter clip."
            )
        return settled, (*notes, *settled.notes())

    @property
    def timeline(self) -> Timeline:
        """Settled by the whole file: only after the last frame was taken."""
        settled, notes = self.settle()
        chosen = None if settled.keeps_all else tuple(int(index) for index in settled.chosen(settled.num_frames))
        return Timeline(len(settled.places), settled.frames_per_second, chosen, notes)


def _outline(path: Path, container: Container) -> Outline:
    """Going through the packets of a file, without decoding them."""
    if container is FOLDER:
        rate = folder_rate(path) or ASSUMED_RATE
        return Outline(len(frame_files(path)), rate, rate, 0.0)
    if container.pillow is not None:
        return Outline(measure_animation(path, container.pillow)[0], None, None, 0.01)
    import numpy as np

    with open_video(path, container) as (opened, stream):
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        tick = float(stream.time_base or 0)
        shown = (packet for packet in opened.demux(stream) if packet.size and not packet.is_discard)
        packets = [(packet.pts, packet.is_keyframe) for packet in islice(shown, MAX_FRAMES + 1)]
        has_sound = bool(opened.streams.audio)
        declared = stream.frames or round((opened.duration or 0) / 1e6 * rate)
    count = len(packets) if len(packets) <= MAX_FRAMES else max(declared, len(packets))
    gaps = [tick * gap for run in _runs(packets) for gap in np.diff(np.sort(run))]
    nominal = nominal_rate(gaps, tick, rate or None) if gaps else rate or None
    return Outline(count, rate or None, nominal, tick, has_sound)


def _runs(packets: Iterable[tuple[int | None, bool]]) -> list[list[int]]:
    """Timestamps of packets, split where they start again: at a key frame before one that was there already."""
    runs: list[list[int]] = [[]]
    latest: int | None = None
    for instant, is_key in packets:
        if instant is None:
            continue
        if is_key and latest is not None and instant < latest:
            runs.append([])
            latest = None
        runs[-1].append(instant)
        latest = instant if latest is None else max(latest, instant)
    return runs
