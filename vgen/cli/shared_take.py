"""The take of a long clip that several processes make together: the first writes it, the others read it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vgen.cli import processes
from vgen.io.media.take import FramesOnDisk, Take

if TYPE_CHECKING:
    import numpy as np


def open_take(folder: Path, plan: Mapping[str, Any], shape: tuple[int, int, int], seed: int) -> Take:
    """The take of a planned clip, see Take; of several processes the first opens it, and all go on from there."""
    if processes.count() == 1:
        return Take(folder, plan, shape, seed)
    if processes.leads():
        take: Take = LeadersTake(folder, plan, shape, seed)
        for number in (take.frames_done, take.windows_done, take.seed):
            processes.agree(number)
        return take
    return FollowersTake(folder, shape, *(processes.agree(0) for _ in range(3)))


class LeadersTake(Take):
    """Tells the others when frames are on disk."""

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
