"""A video handed in: read, checked and planned for, the same way for every command that remakes one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vgen.cli.jobs import Job, Model, ask, plan

if TYPE_CHECKING:
    import numpy as np

    from vgen.cli.options import JobOptions


def plan_on_video(task: str, video: str, options: JobOptions, fields: Mapping[str, Any]) -> tuple[Job, np.ndarray]:
    """Check a request and read its video; as many frames are used as the clip has.

    Args:
        task: restyle, inpaint or outpaint.
        video: name of the file.
        options: the shared ones.
        fields: of the task.
    Returns:
        The job, and uint8 [F, H, W, 3] in the video's own size.
    """
    from vgen.io.video import read_video

    request = ask(task, options.output, options.overwrite, {"video": video, **fields, **options.fields})
    model = Model.find(request.model)
    clip = read_video(video, max_frames=request.num_frames or model.defaults.get("num_frames"))
    job = plan(request, model, options.output, options.overwrite, len(clip.frames))
    job.notes += [f"{video}: {note}" for note in clip.notes]
    frames = clip.frames[: job.request.num_frames]
    if len(frames) < len(clip.frames):
        job.notes.append(f"{video}: the first {len(frames)} of its frames are used, which fit the model.")
    job.notes += say_rate(video, clip.frame_rate, job.request.frame_rate)
    return job, frames


def say_rate(video: str, has: float, wanted: float) -> list[str]:
    """One sentence if a video runs at another rate than the clip."""
    if abs(has - wanted) <= 0.01 * has:
        return []
    return [
        f"{video} runs at {has:g} frames per second, the clip at {wanted:g}: its frames are taken one by one, so its "
        "motion changes speed. --frame-rate sets another rate."
    ]
