"""Prompts by number, for work that needs texts and no clips: SpriteWorld's captions, or the lines of a file."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from vgen.errors import RequestError
from vgen.training.data.clips import SpriteClips
from vgen.training.data.sprites.captions import JUDGED, caption
from vgen.training.data.sprites.keys import AnswerKey
from vgen.training.data.sprites.splits import stream

_FINGERPRINT_TEXTS = 4


class Prompts(Protocol):
    """Texts by index, any index of 0 or more."""

    @property
    def fingerprint(self) -> str:
        """Changes when a text does."""
        ...

    def text(self, index: int, num_frames: int) -> str:
        """Prompt `index` of a clip of that length."""
        ...

    def first_frames(self, indices: range, num_frames: int) -> Tensor:
        """[B, 3, H, W] in [0, 1]: first frames that go with the prompts."""
        ...


class SpritePrompts:
    """Captions of SpriteWorld's clips.

    Args:
        clips: of a split.
        complete: whether each says all that a judge looks for; else about half of them do, drawn whatever the tier, and
            the rest leaves things out as in training.
    """

    def __init__(self, clips: SpriteClips, complete: bool = False) -> None:
        self.clips = clips
        self.complete = complete

    @property
    def fingerprint(self) -> str:
        """Of the clips and of a few texts."""
        texts = "\n".join(self.text(index, 5) for index in range(_FINGERPRINT_TEXTS))
        return hashlib.sha256(f"{self.clips.fingerprint}|{self.complete}|{texts}".encode()).hexdigest()[:16]

    def key(self, index: int, num_frames: int) -> AnswerKey:
        """What clip `index` shows."""
        return self.clips.world.scene(index, num_frames).key

    def text(self, index: int, num_frames: int) -> str:
        """See Prompts."""
        rng = stream(f"prompt of {num_frames} frames", self.clips.split, 0, index)
        judged = tuple(part for part in JUDGED if num_frames > 1 or part != "motion")
        require = judged if self.complete or rng.random() < 0.5 else ()
        return caption(self.key(index, num_frames), rng, still=num_frames == 1, require=require)

    def first_frames(self, indices: range, num_frames: int) -> Tensor:
        """See Prompts."""
        frames = np.stack([self.clips.world.sample(index, num_frames).frames[0] for index in indices])
        return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255


class FilePrompts:
    """The lines of a UTF-8 text file, taken in turn; blank lines are skipped.

    Raises:
        RequestError: no such file, not UTF-8, or no line.
    """

    def __init__(self, path: Path) -> None:
        try:
            lines = path.read_text(encoding="utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise RequestError(f"prompts={str(path)!r} cannot be read: {error}; give a UTF-8 text file.") from None
        self.texts = [line.strip() for line in lines if line.strip()]
        if not self.texts:
            raise RequestError(f"prompts={str(path)!r} holds no prompt: give one per line.")

    @property
    def fingerprint(self) -> str:
        """Of all lines."""
        return hashlib.sha256("\n".join(self.texts).encode()).hexdigest()[:16]

    def text(self, index: int, num_frames: int) -> str:
        """See Prompts."""
        return self.texts[index % len(self.texts)]

    def first_frames(self, indices: range, num_frames: int) -> Tensor:
        """A text file has none."""
        raise RequestError("trajectories.first needs pictures, and a file of prompts has none: leave it out.")
