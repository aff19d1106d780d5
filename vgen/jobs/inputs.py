"""What each task is given: which files are read, how they are fitted to the clip, and which conditions they become.

`TASKS` is the table. Numpy and PIL are imported where a file is read, torch never.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from vgen.errors import RequestError, counted
from vgen.hub.model import Model
from vgen.jobs import processes
from vgen.jobs.fitting import note_of_fit, note_of_rate, place, read_fitted, read_mask
from vgen.request.fields import check_keyframes, split_keyframe
from vgen.request.request import GenerateRequest, ResolvedRequest
from vgen.request.windows import Window, plan_windows

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    from vgen.io.media.video import VideoClip


class Known(NamedTuple):
    """Known frames of a clip; becomes a `vgen.pipelines.VideoCondition`.

    Attributes:
        frames: a picture, or uint8 [F, H, W, 3], in the clip's size.
        frame_index: which frame of the clip the first one is; negative from the end.
        mask: float [F, H, W] or [H, W], 1 where the pixels are known; None: everywhere.
    """

    frames: Any
    frame_index: int = 0
    mask: np.ndarray | None = None


_Part = tuple[str, Mapping[str, Any], int]


@dataclass(frozen=True)
class LongClip:
    """The windows of a long clip.

    Attributes:
        parts: (prompt, settings, cross-fade in frames) of each segment.
        windows: of all segments.
        start: uint8 [F, H, W, 3], frames that start the clip, or None.
        looks: uint8 [H, W, 3], a picture that every window is given, or None.
        num_frames: of the whole clip.
    """

    parts: Sequence[_Part]
    windows: list[Window]
    start: np.ndarray | None
    looks: np.ndarray | None
    num_frames: int

    @property
    def prompts(self) -> list[str]:
        """Of its parts."""
        return [prompt for prompt, _, _ in self.parts]


@dataclass(frozen=True)
class Inputs:
    """What a job hands to its pipeline besides settings.

    Attributes:
        arguments: of the call, by name.
        known: its conditions; of none the call has no such argument.
        closes: the clip ends where it begins; its last frame, the first once more, is left out.
        long: windows in place of one call.
    """

    arguments: dict[str, Any] = field(default_factory=dict)
    known: tuple[Known, ...] = ()
    closes: bool = False
    long: LongClip | None = None


class InputReader:
    """A request while its inputs are read.

    Args:
        asked: the request.
        model: of the request.
        check: refuses the resolved request, or gives sentences about it.
    Attributes:
        request: resolved, once `settle` was called.
        notes: sentences about what was done.
    """

    request: ResolvedRequest

    def __init__(self, asked: GenerateRequest, model: Model, check: Callable[[ResolvedRequest], list[str]]) -> None:
        self.asked, self.model, self._check = asked, model, check
        self.notes: list[str] = []

    def settle(self, video_frames: int | None = None) -> ResolvedRequest:
        """Resolve and check the request; `video_frames` is the number of frames of a given video."""
        self.request = self.model.resolve(self.asked, video_frames)
        self.notes += self._check(self.request)
        if self.asked.seed is None:  # drawn, by each process
            self.request = self.request.model_copy(update={"seed": processes.agree(self.request.seed)})
        return self.request

    def fit(self, name: str, picture: Image) -> Image:
        """A picture in the clip's size, with a note if it had another one."""
        from vgen.io.media.images import fit_image

        self.notes += note_of_fit(name, picture.size, self.request)
        return fit_image(picture, self.request.height, self.request.width, self.request.fit)

    def note_video(self, clip: VideoClip) -> None:
        """Add notes of a video: what was changed, its rate, its size, and its sound."""
        video = str(self.asked.video)
        self.notes += [f"{video}: {note}" for note in clip.notes]
        self.notes += note_of_rate(video, clip.frame_rate, self.request.frame_rate)
        if self.asked.task != "outpaint":
            self.notes += note_of_fit(video, clip.size[::-1], self.request)
        if clip.has_sound:
            self.notes.append(f"{video}: its sound is not kept.")


class Task(NamedTuple):
    """How a task is carried out: by which class of vgen.pipelines, and what reads its inputs."""

    pipeline: str
    read: Callable[[InputReader], Inputs]


def _generate(reader: InputReader) -> Inputs:
    """Nothing is read."""
    reader.settle()
    return Inputs()


def _animate(reader: InputReader) -> Inputs:
    """A picture becomes the first frame."""
    from vgen.io.media.images import read_image

    name = str(reader.asked.image)
    picture = read_image(name)
    reader.settle()
    return Inputs({"image": reader.fit(name, picture)})


def _interpolate(reader: InputReader) -> Inputs:
    """Pictures become the first and the last frame, and keyframes between."""
    from vgen.io.media.images import read_image

    between = [split_keyframe(entry) for entry in reader.asked.keyframes or ()]
    places = [(str(reader.asked.first), 0), *between, (str(reader.asked.last), -1)]
    pictures = [read_image(file) for file, _ in places]
    num_frames = reader.settle().num_frames
    if num_frames < 2:
        raise RequestError(
            f"num_frames={num_frames} has no room for a first and a last frame; "
            f"use {reader.model.strides.temporal + 1} or more."
        )
    check_keyframes(reader.request.keyframes or (), num_frames)
    pairs = zip(places, pictures, strict=True)
    return Inputs(known=tuple(Known(reader.fit(file, picture), index) for (file, index), picture in pairs))


def _loop(reader: InputReader) -> Inputs:
    """A picture becomes the first and the last frame; without one the run makes it from the prompt."""
    from vgen.io.media.images import read_image

    name = reader.asked.image
    if name is None and not reader.asked.prompt.strip():
        raise RequestError("prompt is empty and there is no --image: say what the clip shows, or what it begins with.")
    picture = None if name is None else read_image(name)
    num_frames = reader.settle().num_frames
    if num_frames < 2:
        raise RequestError(f"num_frames={num_frames} cannot move; use {reader.model.strides.temporal + 1} or more.")
    if name is None or picture is None:
        return Inputs(closes=True)
    ends = reader.fit(name, picture)
    return Inputs(known=(Known(ends), Known(ends, -1)), closes=True)


def _predict(reader: InputReader) -> Inputs:
    """Frames of a video start the clip, or end it."""
    asked, video = reader.asked, str(reader.asked.video)
    wanted = reader.model.resolve(asked)
    clip = read_fitted(video, wanted, wanted.keep_frames)
    request = reader.settle(len(clip.frames))
    known = clip.frames[: request.keep_frames]
    first = "first frame" if len(known) == 1 else f"first {counted(len(known), 'frame')}"
    place = "ends" if asked.backward else "starts"
    reader.notes.append(f"{video}: the clip {place} with its {first} of {clip.num_in_file:,}.")
    reader.note_video(clip)
    return Inputs(known=(Known(known, request.num_frames - len(known) if asked.backward else 0),))


def _restyle(reader: InputReader) -> Inputs:
    """A video is what the clip starts from."""
    return Inputs({"video": _read_video(reader).frames})


def _inpaint(reader: InputReader) -> Inputs:
    """A video is known where its mask is black."""
    clip = _read_video(reader)
    white, notes = read_mask(str(reader.asked.mask), clip, reader.request)
    reader.notes += notes
    return Inputs(known=(Known(clip.frames, mask=1 - white / 255),))


def _outpaint(reader: InputReader) -> Inputs:
    """A video is known in the middle of a larger clip."""
    clip = _read_video(reader)
    canvas, mask = place(clip.frames, reader.request.height, reader.request.width)
    if clip.frames.shape[1:3] != clip.size:
        inside = f"{clip.frames.shape[2]} x {clip.frames.shape[1]}"
        reader.notes.append(f"{reader.asked.video}: {clip.size[1]} x {clip.size[0]} was scaled to {inside}.")
    return Inputs(known=(Known(canvas, mask=mask),))


def _extend(reader: InputReader) -> Inputs:
    """A video is the start of a long clip."""
    looks = _read_reference(reader)
    request = reader.settle()
    clip = read_fitted(str(reader.asked.video), request)
    reader.note_video(clip)
    added = max(1, round((request.seconds or 0) * request.frame_rate))
    parts: list[_Part] = [(request.prompt, {}, 0)]
    return Inputs(long=plan_long(request, reader.model, [added], parts, clip.frames, _fit_reference(reader, looks)))


def _story(reader: InputReader) -> Inputs:
    """Timed prompts are the parts of a long clip; a picture may be its first frame."""
    import numpy as np

    from vgen.io.media.images import read_image

    name = reader.asked.image
    picture = None if name is None else read_image(name)
    looks = _read_reference(reader)
    request = reader.settle()
    start = None if name is None or picture is None else np.asarray(reader.fit(name, picture))[None]
    rate, segments = request.frame_rate, request.segments or ()
    lengths = [segment.length(rate) for segment in segments]
    lengths[0] = max(1, lengths[0] - (start is not None))
    parts = [(part.prompt, part.settings, round(part.cross_fade * rate)) for part in segments]
    return Inputs(long=plan_long(request, reader.model, lengths, parts, start, _fit_reference(reader, looks)))


TASKS = {
    "generate": Task("TextToVideoPipeline", _generate),
    "animate": Task("ImageToVideoPipeline", _animate),
    "interpolate": Task("MaskedPredictionPipeline", _interpolate),
    "predict": Task("MaskedPredictionPipeline", _predict),
    "loop": Task("MaskedPredictionPipeline", _loop),
    "inpaint": Task("MaskedPredictionPipeline", _inpaint),
    "outpaint": Task("MaskedPredictionPipeline", _outpaint),
    "extend": Task("MaskedPredictionPipeline", _extend),
    "story": Task("MaskedPredictionPipeline", _story),
    "restyle": Task("VideoToVideoPipeline", _restyle),
}


def _read_video(reader: InputReader) -> VideoClip:
    """The frames of a video that are used, in the clip's size (for outpaint: within it); settles the request."""
    asked, model, video = reader.asked, reader.model, str(reader.asked.video)
    most = asked.num_frames or model.defaults.get("num_frames")
    clip = read_fitted(video, model.resolve(asked, most or 1), most)
    used, stride = reader.settle(len(clip.frames)).num_frames, model.strides.temporal
    if used < clip.num_in_file:
        most = (clip.num_in_file - 1) // stride * stride + 1
        more = f"--num-frames takes up to {most:,}. " if most > used else ""
        reader.notes.append(
            f"{video}: {used:,} of its {clip.num_in_file:,} frames are used, from the first on. {more}What comes "
            "after them can be cut off and made on its own."
        )
    reader.note_video(clip)
    return clip._replace(frames=clip.frames[:used])


def _read_reference(reader: InputReader) -> Image | None:
    """The picture of `reference`, unless it is the clip's own first frame."""
    from vgen.io.media.images import read_image

    name = reader.asked.reference
    return None if name in (None, "first") else read_image(str(name))


def _fit_reference(reader: InputReader, picture: Image | None) -> np.ndarray | None:
    """uint8 [H, W, 3] of the picture in the clip's size."""
    import numpy as np

    return None if picture is None else np.array(reader.fit(str(reader.asked.reference), picture))


def plan_long(
    request: ResolvedRequest,
    model: Model,
    lengths: Sequence[int],
    parts: Sequence[_Part],
    start: np.ndarray | None,
    looks: np.ndarray | None,
) -> LongClip:
    """Plan the windows of a clip of segments; see LongClip.

    Args:
        request: resolved; its num_frames is the length of a window.
        model: of the request.
        lengths: frames of each segment.
        parts, start, looks: see LongClip.
    Raises:
        RequestError: the overlap does not fit, or two passes were asked for.
    """
    if request.upscale is not None:
        raise RequestError(
            f"upscale={request.upscale!r} is not done window by window: leave it out, or use it with another command."
        )
    stride, before = model.strides.temporal, 0 if start is None else len(start)
    third = max(1, (request.num_frames - 1) // 3 // stride * stride + 1)
    overlap = request.overlap if request.overlap is not None else third
    windows = plan_windows(lengths, request.num_frames, overlap, stride, before)
    return LongClip(parts, windows, start, looks, before + sum(lengths))
