"""A clip of any length, window after window, resumed where an earlier run of the same clip stopped."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vgen.events import Observer, Part
from vgen.io.media.take import FramesOnDisk, Take, take_folder
from vgen.jobs import processes
from vgen.jobs.contents import contents
from vgen.jobs.inputs import LongClip
from vgen.jobs.plan import Job
from vgen.jobs.steps import StepSequence
from vgen.request.windows import Window

if TYPE_CHECKING:
    import numpy as np


def open_take(job: Job, clip: LongClip) -> tuple[Take, list[str]]:
    """The frames made so far by an interrupted run of the same clip, else the start alone; and notes about it."""
    request = job.request
    shape, notes = (clip.num_frames, request.height, request.width), []
    take = _shared_take(take_folder(job.output), _identity(job, clip), shape, request.seed)
    if take.replaced:
        notes.append(
            "The interrupted clip there was of other inputs or settings; this one starts from its first frame."
        )
    if take.windows_done:
        notes.append(f"Resumed at frame {take.frames_done} of {shape[0]}, where an earlier run had stopped.")
    elif clip.start is not None:
        take.append(clip.start)
    return take, notes


def _identity(job: Job, clip: LongClip) -> dict[str, Any]:
    """Everything that the frames depend on, so that only the same clip is resumed."""
    import hashlib

    given = [None if frames is None else hashlib.sha256(frames.tobytes()).hexdigest()
             for frames in (clip.start, clip.looks)]  # fmt: skip
    asked = job.request.model_dump(mode="json", exclude={"scale", "allow_untrained"})
    return {
        "request": {**asked, "seed": job.asked_seed},
        "parts": [list(part) for part in clip.parts],
        "windows": clip.windows,
        "given": given,
        "versions": versions(),
        "model": job.model.model_hash,
        "contents": contents(job.request, job.model.folder),
    }


def versions() -> dict[str, str]:
    """Versions of the libraries that decide what comes out."""
    return {name: version(name) for name in ("vgen", "torch", "diffusers", "transformers")}


def windows_left(clip: LongClip, take: Take) -> list[Window]:
    """Windows that are not made yet."""
    return clip.windows[take.windows_done - (clip.start is not None) :]


def steps_left(clip: LongClip, take: Take, usual: int) -> list[int]:
    """Steps of each window that is not made yet; `usual` where a part does not say."""
    return [clip.parts[window.segment][1].get("num_inference_steps", usual) for window in windows_left(clip, take)]


def make_windows_left(
    pipe: Any, job: Job, clip: LongClip, take: Take, settings: dict[str, Any], steps: StepSequence, on_event: Observer
) -> None:
    """Make the windows that are not made yet.

    Args:
        pipe: a MaskedPredictionPipeline.
        job, clip, take: what is made, and where it goes.
        settings: of every call.
        steps: counts those of all windows.
        on_event: called with the number of each window.
    """
    from vgen.pipelines.long_video import Part as LongPart
    from vgen.pipelines.long_video import make_windows

    count, before = len(clip.windows), int(clip.start is not None)

    def show(done: int) -> None:
        if done < count > 1:
            on_event(Part("window", done + 1, count))

    def after(number: int, window: Window) -> None:
        steps.next_call()
        show(number + 1)

    show(take.windows_done - before)
    first: Literal["first"] | None = "first" if job.request.reference == "first" else None
    make_windows(
        pipe, [LongPart(*part) for part in clip.parts], clip.windows, take, take.seed, before, after,
        first if clip.looks is None else clip.looks, **settings,
    )  # fmt: skip


def _shared_take(folder: Path, plan: Mapping[str, Any], shape: tuple[int, int, int], seed: int) -> Take:
    """The take of a planned clip; of several processes the first opens it, and all resume from there."""
    if processes.count() == 1:
        return Take(folder, plan, shape, seed)
    if processes.leads():
        take: Take = LeadersTake(folder, plan, shape, seed)
        for number in (take.frames_done, take.windows_done, take.seed):
            processes.agree(number)
        return take
    return FollowersTake(folder, shape, *(processes.agree(0) for _ in range(3)))


class LeadersTake(Take):
    """Tells the other processes when frames are on disk."""

    def append(self, frames: np.ndarray) -> None:
        """See Take; returns when all processes have come here."""
        super().append(frames)
        processes.wait_for_all()


class FollowersTake(Take):
    """Reads what the first process writes; all of them append the same frames.

    Args:
        folder: the same as the first process's.
        shape: (F, H, W) of the whole clip.
        frames_done, windows_done, seed: as the first process found them.
    """

    def __init__(
        self, folder: Path, shape: tuple[int, int, int], frames_done: int, windows_done: int, seed: int
    ) -> None:
        self.folder, self.shape, self.seed, self.replaced = folder, shape, seed, False
        self.frames = FramesOnDisk(folder / Take.FRAMES, shape)
        self.frames_done, self.windows_done = frames_done, windows_done

    def append(self, frames: np.ndarray) -> None:
        """Count them, once they are on disk."""
        processes.wait_for_all()
        self.frames_done, self.windows_done = self.frames_done + len(frames), self.windows_done + 1

    def remove(self) -> None:
        """Nothing: the first process does it."""
