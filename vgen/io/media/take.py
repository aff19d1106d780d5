"""The frames of a long clip while it is made: on disk, so that memory stays flat and an interrupted run goes on."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vgen.errors import OutputError
from vgen.io.files import write_json

if TYPE_CHECKING:
    import numpy as np

_STATE = "state.json"


class FramesOnDisk:
    """uint8 [F, H, W, 3] in a file, read a frame at a time; what `write_video` needs of an array.

    Args:
        path: of raw frames one after the other.
        shape: (F, H, W).
    """

    def __init__(self, path: Path, shape: tuple[int, int, int]) -> None:
        self.path = path
        self.shape = (*shape, 3)
        self.dtype = "uint8"
        self.size = self.nbytes = shape[0] * shape[1] * shape[2] * 3

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[np.ndarray]:
        for index in range(len(self)):
            yield self.read(index, 1)[0]

    def read(self, start: int, count: int) -> np.ndarray:
        """`count` frames from `start` on."""
        import numpy as np

        size = self.size // len(self)
        with self.path.open("rb") as stream:
            stream.seek(start * size)
            return np.frombuffer(bytearray(stream.read(count * size)), np.uint8).reshape(count, *self.shape[1:])


class Take:
    """Frames of a planned clip, appended window by window; what was appended survives the process.

    Args:
        folder: that holds them; made if it is missing. Frames of another plan there are replaced.
        plan: JSON of everything that the frames depend on, files by their content.
        shape: (F, H, W) of the whole clip.
        seed: kept with it; a take that goes on has the seed that it began with.
    Raises:
        OutputError: the folder cannot be written.
    Attributes:
        replaced: frames of another plan lay there.
    """

    FRAMES = "frames.rgb"

    def __init__(self, folder: Path, plan: Mapping[str, Any], shape: tuple[int, int, int], seed: int) -> None:
        self.folder = folder
        self.seed = seed
        self.shape = shape
        text = json.dumps([dict(plan), list(shape)], sort_keys=True)
        self._plan = hashlib.sha256(text.encode()).hexdigest()
        try:
            self._open()
        except OSError as error:
            raise OutputError(f"{folder} cannot be written: {error.strerror or error}.") from None

    def _open(self) -> None:
        self.folder.mkdir(exist_ok=True)
        self.frames = FramesOnDisk(self.folder / self.FRAMES, self.shape)
        file, size, state = self.frames.path, self.frames.nbytes, self._read_state()
        fits = state.get("plan") == self._plan and file.is_file() and file.stat().st_size == size
        self.frames_done: int = state["frames"] if fits else 0
        self.windows_done: int = state["windows"] if fits else 0
        self.replaced = bool(state) and not fits
        self.seed = state["seed"] if fits else self.seed
        if not fits:
            (self.folder / _STATE).unlink(missing_ok=True)
            with file.open("wb") as stream:
                stream.truncate(size)

    def _read_state(self) -> dict[str, Any]:
        try:
            found = json.loads((self.folder / _STATE).read_bytes())
            return {"plan": found["plan"], **{name: int(found[name]) for name in ("frames", "windows", "seed")}}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def append(self, frames: np.ndarray) -> None:
        """Add a window's frames, uint8 [F, H, W, 3]; they are on disk when this returns."""
        with self.frames.path.open("r+b") as stream:
            stream.seek(self.frames_done * self.frames.nbytes // len(self.frames))
            stream.write(frames.tobytes())
            stream.flush()
            os.fsync(stream.fileno())
        self.frames_done, self.windows_done = self.frames_done + len(frames), self.windows_done + 1
        state = {"plan": self._plan, "frames": self.frames_done, "windows": self.windows_done, "seed": self.seed}
        write_json(self.folder / _STATE, state)

    def last(self, count: int) -> np.ndarray:
        """The `count` frames that were added last."""
        return self.frames.read(self.frames_done - count, count)

    def first(self) -> np.ndarray:
        """The first frame, uint8 [H, W, 3]."""
        return self.frames.read(0, 1)[0]

    def remove(self) -> None:
        """Take it off the disk."""
        shutil.rmtree(self.folder, ignore_errors=True)


def take_folder(output: str | Path) -> Path:
    """The folder of an output's take, next to it."""
    path = Path(output)
    return path.with_name(f".{path.name}.take")
