"""How a clip of any length is cut into windows that a model can make: arithmetic, and nothing loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from vgen.errors import RequestError


class Window(NamedTuple):
    """One call of the model.

    Attributes:
        segment: which part of the story it belongs to.
        start: first frame of the whole clip that it makes.
        known: frames before `start` that it is given.
        new: frames that it makes.
        num_frames: length of the call; what stands over is dropped.
    """

    segment: int
    start: int
    known: int
    new: int
    num_frames: int


def plan_windows(lengths: Sequence[int], window: int, overlap: int, stride: int, given: int = 0) -> list[Window]:
    """Windows that make segments one after the other; none reaches over the end of its segment.

    The frames of a segment are shared evenly among its windows. As in Phenaki, each window is given the last frames of
    what was made before, decoded.

    Args:
        lengths: frames of each segment.
        window: most frames of a call, 1 + a multiple of the stride.
        overlap: frames that a window is given, 1 + a multiple of the stride.
        stride: pixel frames per latent frame.
        given: frames that are there before the first window.
    Raises:
        RequestError: the overlap leaves no room, or does not fit the stride.
    """
    check_overlap(window, overlap, stride)
    windows: list[Window] = []
    position = given
    for segment, length in enumerate(lengths):
        left = length
        while left:
            known = min(overlap, (position - 1) // stride * stride + 1) if position else 0
            calls = -(-left // (window - known))
            new = -(-left // calls)
            num_frames = -(-(known + new - 1) // stride) * stride + 1
            windows.append(Window(segment, position, known, new, num_frames))
            position, left = position + new, left - new
    return windows


def check_overlap(window: int, overlap: int, stride: int) -> None:
    """Refuse an overlap that does not fit.

    Raises:
        RequestError: with the nearest that does.
    """
    most = (window - 2) // stride * stride + 1
    if window <= 1 or most < 1:
        raise RequestError(f"num_frames={window} is too short for windows: use {stride + 1} or more.")
    if 1 <= overlap <= most and (overlap - 1) % stride == 0:
        return
    nearest = min(max((overlap - 1) // stride * stride + 1, 1), most)
    raise RequestError(
        f"overlap={overlap} does not fit: overlap - 1 must divide by {stride}, and it must be from 1 to {most} "
        f"(a window has num_frames={window}); use {nearest}."
    )
