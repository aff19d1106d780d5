"""Long clips: windows planned, made, kept on disk while they are made, and written as one clip."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vgen.cli import display, processes
from vgen.cli.contents import contents
from vgen.cli.jobs import Job, load_pipeline, out_of_memory, report, say_fit, versions
from vgen.cli.shared_take import open_take
from vgen.errors import OutputError, RequestError
from vgen.hub.find import model_hash
from vgen.progress import Progress
from vgen.request.windows import Window, plan_windows

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    from vgen.pipelines.long_video import Part
    from vgen.request.request import GenerateRequest


def make_long(
    job: Job,
    lengths: Sequence[int],
    parts: Sequence[Any],
    given: np.ndarray | None,
    asked_seed: int | None,
    picture: Image | None = None,
) -> None:
    """Make a clip of segments, going on from an interrupted take of the same clip if there is one.

    Args:
        job: resolved; its num_frames is the length of a window.
        lengths: frames of each segment.
        parts: (prompt, settings, cross-fade in frames) of each segment.
        given: uint8 [F, H, W, 3], frames that start the clip, or None.
        asked_seed: the seed that the user gave, or None.
        picture: the one of `reference`, see `read_reference`.
    Raises:
        RequestError: the overlap does not fit, or two passes were asked for.
        OutputError: there is no room on the disk.
    """
    from vgen.io.media.take import take_folder
    from vgen.io.media.video import write_video

    started, request, stride = time.monotonic(), job.request, job.model.strides.temporal
    if request.upscale is not None:
        raise RequestError(
            f"upscale={request.upscale!r} is not done window by window: leave it out, or use it with another command."
        )
    before = 0 if given is None else len(given)
    looks = _fitted(job, picture)
    windows = plan_windows(lengths, request.num_frames, overlap_of(job), stride, before)
    shape = (before + sum(lengths), request.height, request.width)
    _check_room(Path(job.output), shape)
    display.tell(Progress("reading", what=request.model))
    hashed, used = model_hash(job.model.folder), contents(request, job.model.folder)
    plan = {**_plan(job, parts, windows, [given, looks], asked_seed), "model": hashed, "contents": used}
    take = open_take(take_folder(job.output), plan, shape, request.seed)
    if take.replaced:
        job.notes.append(
            "The interrupted clip there was of other inputs or settings; this one was begun from its start."
        )
    if take.windows_done:
        job.notes.append(f"Went on from frame {take.frames_done} of {shape[0]}, which an earlier run had reached.")
    elif given is not None:
        take.append(given)
    job.request = request.model_copy(update={"seed": take.seed})
    prompts = [prompt for prompt, _, _ in parts]
    pipe = load_pipeline("MaskedPredictionPipeline", job, prompts)
    pipe.encode_ahead(prompts, job.request.negative_prompt)
    _make(pipe, job, windows, parts, take, before, looks if looks is not None else request.reference)
    if not processes.leads():
        return
    display.tell(Progress("writing", what=job.output))
    metadata = job.request.to_metadata(hashed, versions(), used)
    path = write_video(job.output, take.frames, request.frame_rate, metadata, job.overwrite, request.scale or 1)
    report(path, job, take.frames, time.monotonic() - started)
    take.remove()


def read_reference(request: GenerateRequest) -> Image | None:
    """The picture of `reference`, unless it is the clip's own first frame."""
    from vgen.io.media.images import read_image

    return None if request.reference in (None, "first") else read_image(request.reference)


def _fitted(job: Job, picture: Image | None) -> np.ndarray | None:
    """uint8 [H, W, 3] of a picture in the clip's size."""
    import numpy as np

    from vgen.io.media.images import fit_image

    if picture is None:
        return None
    job.notes += say_fit(str(job.request.reference), picture.size, job.request)
    return np.array(fit_image(picture, job.request.height, job.request.width, job.request.fit))


def overlap_of(job: Job) -> int:
    """Frames that each window is given: what was asked for, or about a third of a window."""
    if job.request.overlap is not None:
        return job.request.overlap
    stride = job.model.strides.temporal
    return max(1, (job.request.num_frames - 1) // 3 // stride * stride + 1)


def _plan(
    job: Job,
    parts: Sequence[Any],
    windows: Sequence[Window],
    given: Sequence[np.ndarray | None],
    seed: int | None,
) -> dict[str, Any]:
    """Everything that the frames depend on, so that only the same clip goes on."""
    import hashlib

    return {
        "request": {**job.request.model_dump(mode="json", exclude={"scale", "allow_untrained"}), "seed": seed},
        "parts": [list(part) for part in parts],
        "windows": windows,
        "given": [None if frames is None else hashlib.sha256(frames.tobytes()).hexdigest() for frames in given],
        "versions": versions(),
    }


def _check_room(output: Path, shape: tuple[int, int, int]) -> None:
    needed = shape[0] * shape[1] * shape[2] * 3
    free = shutil.disk_usage(output.resolve().parent).free
    if needed > free:
        raise OutputError(
            f"{output} needs {needed:,} bytes for its frames while it is made, and {free:,} are free: "
            "make it shorter, smaller, or elsewhere."
        )


def _make(
    pipe: Any, job: Job, windows: Sequence[Window], parts: Sequence[Any], take: Any, before: int, reference: Any
) -> None:
    import torch

    from vgen.pipelines.long_video import Part, make_windows

    def show(done: int) -> None:
        if done < len(windows):
            display.set_part("window", done + 1, len(windows))

    show(take.windows_done - int(before > 0))
    made: list[Part] = [Part(*part) for part in parts]
    settings = job.request.call_settings()
    settings["height"], settings["width"] = take.shape[1:]
    try:
        make_windows(
            pipe, made, windows, take, take.seed, int(before > 0), lambda number, window: show(number + 1), reference,
            **settings,
        )  # fmt: skip
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise out_of_memory(job.request, error) from None
