"""Which frames of which clip become a sample, and of what size: from the footage and the model's strides.

A bucket is a size, a length and a frame rate; a batch is of one bucket. Nothing is lost without a reason.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vgen.errors import RequestError, counted
from vgen.training.data.footage.records import Clip, Dropped, content_key
from vgen.types import Strides, VideoShape

SAMPLE_VERSION = 2
"""Changes when the same sample would get other pixels."""


class Bucket(NamedTuple):
    """Size, length and frame rate of a sample; a picture has one frame, and the rate of the clips."""

    num_frames: int
    height: int
    width: int
    frame_rate: float

    def __str__(self) -> str:
        return f"{self.num_frames} x {self.height} x {self.width} at {self.frame_rate:g}"


@dataclass(frozen=True)
class Sample:
    """What is encoded once and trained on many times.

    Attributes:
        key: changes with the frames, their crop and their size.
        clip, folder: id and folder of the clip; weights go by the folder.
        frames: of the clip's source, as numbered there.
        mask: hash of the clip's mask; "" without one.
    """

    key: str
    clip: str
    folder: str
    bucket: Bucket
    frames: tuple[int, ...]
    mask: str = ""


def thumbnail_sample(clip: Clip, count: int, scale: float) -> Sample:
    """`count` evenly spaced frames of a clip, scaled by `scale` or 1, the smaller: for models that look at it."""
    places = np.rint(np.linspace(clip.start, clip.start + clip.num_frames - 1, count))
    height, width = (max(1, round(length * min(1.0, scale))) for length in clip.crop[2:])
    return Sample(clip.id, clip.id, clip.folder, Bucket(count, height, width, 1.0), tuple(map(int, places)))


@dataclass(frozen=True)
class Geometry:
    """What samples of a model look like.

    Attributes:
        strides: pixels per token.
        lengths: allowed numbers of frames; a clip gets the longest that it can fill.
        area: pixels of a frame, at most.
        sizes: allowed (height, width); None: chosen for each aspect ratio within `area`.
        frame_rate: what clips are resampled to; None keeps their own. Slower footage keeps its own.
        windows: most samples of a clip; 0: as many as it holds without overlap.
        allow_upscale: take footage smaller than its bucket.
    """

    strides: Strides
    lengths: tuple[int, ...]
    area: int
    sizes: tuple[tuple[int, int], ...] | None = None
    frame_rate: float | None = None
    windows: int = 0
    allow_upscale: bool = False

    def check(self) -> None:
        """Refuse sizes and lengths that the model cannot have.

        Raises:
            ShapeError: names the value and the nearest that fit.
        """
        for length in self.lengths:
            VideoShape(length, *(self.sizes[0] if self.sizes else (self.strides.height, self.strides.width))).check(
                self.strides
            )
        for height, width in self.sizes or ():
            VideoShape(1, height, width).check(self.strides)
        if self.area < self.strides.height * self.strides.width:
            raise RequestError(
                f"area={self.area} is less than one token; use {self.strides.height * self.strides.width}."
            )


def default_lengths(num_frames: int, stride: int) -> tuple[int, ...]:
    """The model's own length, about a half, a quarter ... of it as far as the stride allows, and single pictures."""
    latent, lengths = (num_frames - 1) // stride, [1]
    while latent >= 1:
        lengths.append(latent * stride + 1)
        latent //= 2
    return tuple(sorted(set(lengths)))


def choose_size(height: int, width: int, geometry: Geometry) -> tuple[int, int]:
    """The size nearest to a picture's: least |log(aspect ratio of the size / of the picture)|.

    Where sizes are not given, 0.25 log(area / area of the size) is added.
    """
    wanted = math.log(width / height)

    def cost(size: tuple[int, int]) -> float:
        stretch = abs(math.log(size[1] / size[0]) - wanted)
        return stretch if geometry.sizes else stretch + 0.25 * math.log(geometry.area / (size[0] * size[1]))

    return min(geometry.sizes or _sizes(geometry), key=cost)


def _sizes(geometry: Geometry) -> Iterable[tuple[int, int]]:
    _, row, column = geometry.strides
    for height in range(row, geometry.area // column + 1, row):
        for width in range(column, geometry.area // height + 1, column):
            yield height, width


def plan_samples(clips: Sequence[Clip], geometry: Geometry) -> tuple[list[Sample], list[Dropped]]:
    """The samples of clips, and a reason for every clip that has none."""
    geometry.check()
    samples: list[Sample] = []
    dropped: list[Dropped] = []
    for clip in clips:
        height, width = choose_size(clip.crop[2], clip.crop[3], geometry)
        if not geometry.allow_upscale and (clip.crop[2] < height or clip.crop[3] < width):
            dropped.append(
                clip.dropped(f"too small: {clip.crop[3]} x {clip.crop[2]} pixels for a size of {width} x {height}")
            )
            continue
        rate, frames = _resampled(clip, geometry.frame_rate)
        fitting = [length for length in geometry.lengths if length <= len(frames)]
        if not fitting or (clip.kind == "video" and max(fitting) == 1 < max(geometry.lengths)):
            shortest = min(length for length in geometry.lengths if length > 1 or max(geometry.lengths) == 1)
            length = f"{counted(len(frames), 'frame')} at {rate:g} per second"
            dropped.append(clip.dropped(f"too short: {length}, and at least {shortest} are needed"))
            continue
        bucket = Bucket(max(fitting), height, width, rate)
        for window in _windows(frames, bucket.num_frames, geometry.windows):
            key = content_key(SAMPLE_VERSION, clip.source_hash, window, clip.crop, [height, width])
            samples.append(Sample(key, clip.id, clip.folder, bucket, tuple(window)))
    return samples, dropped


def _resampled(clip: Clip, wanted: float | None) -> tuple[float, list[int]]:
    """The frame rate of a clip's samples, and its frames at that rate: at each instant the nearest."""
    if clip.kind == "image":
        return wanted or 1.0, [clip.start]
    if wanted is None or wanted >= clip.frame_rate:
        return clip.frame_rate, list(range(clip.start, clip.start + clip.num_frames))
    step = clip.frame_rate / wanted
    count = math.floor((clip.num_frames - 1) / step + 1e-6) + 1
    return wanted, [clip.start + math.floor(place * step + 0.5) for place in range(count)]


def _windows(frames: list[int], length: int, most: int) -> Iterable[list[int]]:
    """Stretches without overlap, evenly spread, the first and the last frame among them where there are two or more."""
    count = len(frames) // length
    count = min(count, most) if most else count
    room = len(frames) - length
    for place in range(count):
        begin = round(room * place / (count - 1)) if count > 1 else 0
        yield frames[begin : begin + length]
