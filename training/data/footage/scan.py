"""Going through one file of footage, once: its shots, and what the filters need to know of each."""

from __future__ import annotations

import base64
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

from vgen.errors import VgenError
from vgen.io.media.codec.stream import FootageStream, Timeline
from vgen.io.media.images import read_image

SCAN_VERSION = 2
"""Changes when a scan would find something else in the same file."""

BARS_BELOW = 30
"""Grey level under which a row or column at the edge counts as a black bar; encoded black is noisy."""

_DETECT_WIDTH = 256
_BLOCKS = 32
_PRINT_SIDE, _PRINT_FRAMES = 12, 4
_THUMB_HEIGHT, _THUMBS = 72, 5
_PROFILE_EVERY = 4
_STRAIGHT = 0.4


@dataclass(frozen=True)
class Shot:
    """Consecutive frames without a cut.

    Attributes:
        start, num_frames: in the file's (resampled) frames, black ends trimmed off.
        trimmed: black frames taken off both ends.
        brightness: mean over frames of the 95th percentile of grey, 0 to 255.
        motion: largest change of a small block against the first frame (the eighth largest of 1024), 0 to 255.
        crop: (top, left, height, width) without black bars.
        print: 12 x 12 RGB pictures of four frames, base64: duplicates have nearly the same.
    """

    start: int
    num_frames: int
    trimmed: int
    brightness: float
    motion: float
    crop: tuple[int, int, int, int]
    print: str


@dataclass(frozen=True)
class Scan:
    """What a file holds.

    Attributes:
        kind: "video" or "image".
        num_frames, frame_rate: of the whole file; `resampled` if its rate varies, else as decoded.
        size: (height, width), upright.
        shots: in order.
        notes: what reading changes, one sentence each.
    """

    kind: str
    num_frames: int
    frame_rate: float
    size: tuple[int, int]
    shots: tuple[Shot, ...]
    notes: tuple[str, ...]
    resampled: bool = False


Thumbnails = list[np.ndarray]
"""Of one shot: uint8 [72, W, 3] each."""


def scan_image(path: Path) -> tuple[Scan, list[Thumbnails]]:
    """A picture is one shot of one frame; raises MediaError where it cannot be read."""
    picture = np.asarray(read_image(path))
    measured = _Measured()
    measured.add(picture)
    shot = measured.shot(0, 1, 0)
    return Scan("image", 1, 1.0, picture.shape[:2], (shot,), ()), [measured.thumbnails(0, 1)]


def check_detector(cut_threshold: float) -> None:
    """Raise a VgenError where `cut_threshold` is above 0 and PySceneDetect is not installed."""
    if cut_threshold > 0 and importlib.util.find_spec("scenedetect") is None:
        raise VgenError("Cutting into shots needs PySceneDetect: pip install 'vgen[train]', or use --cut-threshold 0.")


def scan_video(path: Path, cut_threshold: float) -> tuple[Scan, list[Thumbnails]]:
    """Decode a video once and find its cuts.

    Args:
        path: the file.
        cut_threshold: of PySceneDetect's AdaptiveDetector; higher finds fewer cuts. 0: the file is one shot.
    Raises:
        MediaError: it cannot be read; see `FootageStream`.
        VgenError: PySceneDetect is not installed.
    """
    stream, measured = FootageStream(path), _Measured()
    find_cuts, cuts = _cut_finder(cut_threshold), set[int]()
    for place, picture in enumerate(stream):
        cuts.update(find_cuts(place, measured.add(picture)))
    timeline = stream.timeline
    shots, thumbnails = [], []
    for begin, end in pairwise([0, *sorted(cut for cut in cuts if 0 < cut < len(measured)), len(measured)]):
        first, last = measured.without_black_ends(begin, end)
        start, stop = _shown(timeline, first), _shown(timeline, last)
        if stop > start:
            shots.append(measured.shot(first, last, (end - begin) - (last - first), start, stop - start))
            thumbnails.append(measured.thumbnails(first, last))
    resampled = timeline.chosen is not None
    facts = (timeline.num_frames, timeline.frame_rate, measured.size, tuple(shots), timeline.notes, resampled)
    return Scan("video", *facts), thumbnails


def _shown(timeline: Timeline, decoded: int) -> int:
    """The first frame of the clip that shows decoded frame `decoded` or a later one."""
    if timeline.chosen is None:
        return decoded
    return int(np.searchsorted(np.asarray(timeline.chosen), decoded, side="left"))


def _cut_finder(threshold: float) -> Callable[[int, np.ndarray], list[int]]:
    """PySceneDetect's detector: takes a frame's number and the small frame, and returns the cuts found by then."""
    if threshold <= 0:
        return lambda place, small: []
    check_detector(threshold)
    from scenedetect import AdaptiveDetector, FrameTimecode

    # The detector counts frames; the rate only has to be some number. Short shots are dropped with a reason later, not
    # merged into their neighbours here.
    detector = AdaptiveDetector(adaptive_threshold=threshold, min_scene_len=2)

    def cuts_at(place: int, small: np.ndarray) -> list[int]:
        cuts = detector.process_frame(FrameTimecode(place, 25.0), np.ascontiguousarray(small[..., ::-1]))
        return [int(cut.frame_num) for cut in cuts]

    return cuts_at


@dataclass
class _Measured:
    """Small facts of every frame, so that shots can be judged when the cuts are known."""

    size: tuple[int, int] = (0, 0)
    bright: list[float] = field(default_factory=list)
    blocks: list[np.ndarray] = field(default_factory=list)
    prints: list[np.ndarray] = field(default_factory=list)
    rows: dict[int, np.ndarray] = field(default_factory=dict)
    columns: dict[int, np.ndarray] = field(default_factory=dict)
    thumbs: dict[int, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.bright)

    def add(self, picture: np.ndarray) -> np.ndarray:
        """Take a frame, uint8 [H, W, 3]; returns it small, for the detector."""
        place, self.size = len(self.bright), picture.shape[:2]
        small = _shrink(picture, round(_DETECT_WIDTH * picture.shape[0] / picture.shape[1]), _DETECT_WIDTH)
        grey = small.mean(axis=-1)
        self.bright.append(float(np.percentile(grey, 95)))
        self.blocks.append(_shrink(grey.astype(np.uint8), _BLOCKS, _BLOCKS))
        self.prints.append(_shrink(small, _PRINT_SIDE, _PRINT_SIDE))
        if place % _PROFILE_EVERY == 0:
            lit = picture[::2, ::2].max(axis=-1) >= BARS_BELOW
            self.rows[place], self.columns[place] = lit.mean(axis=1), lit.mean(axis=0)
            height, width = self.size
            self.thumbs[place] = _shrink(picture, _THUMB_HEIGHT, round(width * _THUMB_HEIGHT / height))
        return small

    def without_black_ends(self, begin: int, end: int, below: float = 24.0) -> tuple[int, int]:
        """The stretch without black frames at its ends; all of it where there is nothing else."""
        lit = [place for place in range(begin, end) if self.bright[place] >= below]
        return (lit[0], lit[-1] + 1) if lit else (begin, end)

    def shot(self, first: int, last: int, trimmed: int, start: int = 0, num_frames: int = 1) -> Shot:
        """Judge the decoded frames [first, last)."""
        blocks = np.stack(self.blocks[first:last]).astype(np.float32).reshape(last - first, -1)
        change = np.sort(np.abs(blocks - blocks[0]), axis=1)[:, -8]
        chosen = np.rint(np.linspace(first, last - 1, _PRINT_FRAMES)).astype(int)
        picture = np.stack([self.prints[place] for place in chosen])
        return Shot(
            start,
            num_frames,
            trimmed,
            round(float(np.mean(self.bright[first:last])), 2),
            round(float(change.max()), 2),
            self._crop(first, last),
            base64.b64encode(picture.tobytes()).decode(),
        )

    def _crop(self, first: int, last: int) -> tuple[int, int, int, int]:
        whole = (0, 0, *self.size)
        inside = [place for place in self.rows if first <= place < last]
        if not inside:
            return whole
        top, height = _content(np.max([self.rows[place] for place in inside], axis=0), self.size[0])
        left, width = _content(np.max([self.columns[place] for place in inside], axis=0), self.size[1])
        return top, left, height, width

    def thumbnails(self, first: int, last: int) -> Thumbnails:
        """A few frames of a stretch."""
        inside = [place for place in self.thumbs if first <= place < last] or [max(p for p in self.thumbs if p < last)]
        chosen = np.rint(np.linspace(0, len(inside) - 1, min(_THUMBS, len(inside)))).astype(int)
        return [self.thumbs[inside[index]] for index in chosen]


def _content(lit: np.ndarray, side: int) -> tuple[int, int]:
    """Where the picture begins between black bars, and how long it is; `lit` is by every second line."""
    # A bar ends in a straight edge: most of the next line is lit at some time. A dark scene with something bright in
    # its middle has no such edge, and stays whole.
    inside = np.flatnonzero(lit > 0.02)
    if not len(inside):
        return 0, side
    begin, end, least = int(inside[0]), int(inside[-1]) + 1, max(1, round(0.01 * side))
    begin = begin if begin >= least and lit[begin : begin + 3].max() >= _STRAIGHT else 0
    end = end if len(lit) - end >= least and lit[end - 3 : end].max() >= _STRAIGHT else len(lit)
    first, last = 2 * begin, side if end == len(lit) else 2 * end
    return first, last - first


def _shrink(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.fromarray(picture).resize((max(1, width), max(1, height)), Image.Resampling.BOX))


def decode_print(text: str) -> np.ndarray:
    """A shot's print as float32 [1728]."""
    return np.frombuffer(base64.b64decode(text), np.uint8).astype(np.float32)
