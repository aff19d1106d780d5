"""A video handed in: read, fitted, checked and planned for, the same way for every command that starts from one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vgen.cli.jobs import Job, Model, ask, fit_picture, plan, say_fit
from vgen.request.fields import MAX_FRAME_RATE

if TYPE_CHECKING:
    from vgen.cli.options import JobOptions
    from vgen.io.media.video import VideoClip
    from vgen.request.request import ResolvedRequest


def plan_on_video(task: str, video: str, options: JobOptions, fields: Mapping[str, Any]) -> tuple[Job, VideoClip]:
    """Check a request and read its video; as many frames are used as the clip has.

    Args:
        task: restyle, inpaint or outpaint.
        video: name of the file.
        options: the shared ones.
        fields: of the task.
    Returns:
        The job, and the video with the frames that are used, in the clip's size (for outpaint: fitted into it).
    """
    request = ask(task, options.output, options.overwrite, {"video": video, **fields, **options.fields})
    model = Model.find(request.model)
    most = request.num_frames or model.defaults.get("num_frames")
    clip = read_fitted(video, request.resolve(model.defaults, model.strides, most or 1), most)
    job = plan(request, model, options.output, options.overwrite, len(clip.frames))
    used, stride = job.request.num_frames, job.model.strides.temporal
    if used < clip.num_in_file:
        most = (clip.num_in_file - 1) // stride * stride + 1
        more = f"--num-frames takes up to {most:,}. " if most > used else ""
        job.notes.append(
            f"{video}: {used:,} of its {clip.num_in_file:,} frames are used, from the first on. {more}What comes "
            "after them can be cut off and made on its own."
        )
    say_video(job, video, clip)
    return job, clip._replace(frames=clip.frames[:used])


def read_fitted(video: str, request: ResolvedRequest, max_frames: int | None = None) -> VideoClip:
    """Read a video, each frame brought to the clip's size as it is read."""
    from vgen.io.media.video import read_video

    return read_video(video, max_frames, fit=lambda pixels: fit_picture(pixels, request))


def say_video(job: Job, video: str, clip: VideoClip) -> None:
    """Add what is to be said of a video before the run: what was changed, its rate, its size, and its sound."""
    job.notes += [f"{video}: {note}" for note in clip.notes]
    job.notes += say_rate(video, clip.frame_rate, job.request.frame_rate)
    if job.request.task != "outpaint":
        job.notes += say_fit(video, clip.size[::-1], job.request)
    if clip.has_sound:
        job.notes.append(f"{video}: its sound is not kept.")


def say_rate(video: str, has: float, wanted: float) -> list[str]:
    """One sentence if a video runs at another rate than the clip."""
    if abs(has - wanted) <= 0.01 * has:
        return []
    keeps = f" --frame-rate {has:.5g} keeps its speed." if has <= MAX_FRAME_RATE else ""
    return [
        f"{video}: it runs at {has:.5g} frames per second and the clip at {wanted:.5g}: its frames are taken one by "
        f"one, so that it moves {_times(wanted / has)}.{keeps}"
    ]


def _times(factor: float) -> str:
    return f"{factor:.3g} times as fast" if factor > 1 else f"{1 / factor:.3g} times slower"
