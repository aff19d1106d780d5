"""What a model states about its training: sizes, lengths, words, and how well its VAE keeps pictures of its kind.

A folder states it as `trained` in model_index.json (see docs/formats.md); nothing of it changes what is computed. For
LTX-Video, whose folders state nothing, it is the range that its makers publish.
"""

from __future__ import annotations

import re
import sys
import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

from vgen.errors import CheckpointError, ShapeError, UntrainedWarning, listed
from vgen.types import LatentShape, Strides, VideoShape

STATEMENT = "trained"
"""Its key in model_index.json."""

_RANGES = ("height", "width", "pixels", "num_frames")
_TEXTS = ("words", "world")
_INSIDE = ("vgen", "torch")
_LTX_FAMILY = ("ltx", "original")  # conventions, and diffusers' classes


@dataclass(frozen=True)
class Trained:
    """What a model was trained for; what is None is not stated, and anything goes.

    Attributes:
        height, width: rows and columns, (least, most).
        pixels: rows times columns, likewise.
        num_frames: likewise.
        words: of its prompts, in lower case.
        world: one sentence that says what it can show.
        reconstruction_psnr: dB that the VAE keeps of pictures of its kind, at least.
        published: the range is a recommendation of the makers: there are warnings and no refusals.

    >>> Trained(height=(64, 64), width=(64, 64)).nearest(VideoShape(17, 128, 96), Strides(4, 16, 16))
    VideoShape(num_frames=17, height=64, width=64)
    """

    height: tuple[int, int] | None = None
    width: tuple[int, int] | None = None
    pixels: tuple[int, int] | None = None
    num_frames: tuple[int, int] | None = None
    words: frozenset[str] = frozenset()
    world: str = ""
    reconstruction_psnr: float | None = None
    published: bool = False

    @classmethod
    def read(cls, index: Mapping[str, Any]) -> Self:
        """From the content of a model_index.json, or a pipeline's configuration.

        Raises:
            CheckpointError: the statement makes no sense; names the key.
        """
        stated = index.get(STATEMENT)
        if stated is None:
            family = str(index.get("convention") or index.get("_class_name")).lower()
            return cls(**LTX_PUBLISHED) if family.startswith(_LTX_FAMILY) else cls()
        if not isinstance(stated, Mapping):
            raise _malformed("it must be a JSON object")
        unknown = set(stated) - {*_RANGES, *_TEXTS, "reconstruction_psnr"}
        if unknown:
            raise _malformed(f"{min(unknown)!r} is not a key of it")
        found: dict[str, Any] = {name: _range(name, stated[name]) for name in _RANGES if stated.get(name) is not None}
        for name in _TEXTS:
            if not isinstance(stated.get(name) or "", str):
                raise _malformed(f"{name!r} must be text")
        psnr = stated.get("reconstruction_psnr")
        if psnr is not None and (isinstance(psnr, bool) or not isinstance(psnr, (int, float))):
            raise _malformed("'reconstruction_psnr' must be a number of dB")
        words = frozenset((stated.get("words") or "").split())
        return cls(**found, words=words, world=stated.get("world") or "", reconstruction_psnr=psnr)

    def nearest(self, shape: VideoShape, strides: Strides) -> VideoShape:
        """The trained size and length that is nearest to `shape`.

        Args:
            shape: fits `strides`.
            strides: pixels per token, which the result fits.
        """
        frames, height, width = (
            _clamp(value, limits)
            for value, limits in zip(shape, (self.num_frames, self.height, self.width), strict=True)
        )
        found = VideoShape(frames, height, width)
        if self.pixels is None or self.pixels[0] <= height * width <= self.pixels[1]:
            return found
        rows, columns = height // strides.height, width // strides.width
        within = _clamp(height * width, self.pixels) // (strides.height * strides.width)
        if rows * columns > within:
            one = VideoShape.of_latent(LatentShape(1, rows, columns), strides).within(strides, within)
            return one._replace(num_frames=frames)
        while rows * columns < within:
            rows, columns = (rows + 1, columns) if rows * width <= columns * height else (rows, columns + 1)
        return VideoShape(frames, rows * strides.height, columns * strides.width)

    def outside(self, shape: VideoShape, strides: Strides) -> str | None:
        """One sentence about a size or length that it was not trained for, with the nearest; None: it was.

        Args:
            shape: of the clip; fits `strides`.
            strides: pixels per token.
        """
        nearest = self.nearest(shape, strides)
        if nearest == shape:
            return None
        who = "its makers publish it" if self.published else "the model was trained"
        found = []
        if (nearest.height, nearest.width) != (shape.height, shape.width):
            sides = [f"{name} {_shown(limits)}" for name in _RANGES[:3] if (limits := getattr(self, name)) is not None]
            found.append(
                f"width={shape.width}, height={shape.height} is not a size that {who} for ({', '.join(sides)}); "
                f"use {nearest.width} x {nearest.height}"
            )
        if nearest.num_frames != shape.num_frames:
            found.append(
                f"num_frames={shape.num_frames} is not a length that {who} for ({_shown(self.num_frames)}); "
                f"use {nearest.num_frames}"
            )
        return "; and ".join(found)

    def refuse(self, shape: VideoShape, strides: Strides) -> None:
        """Refuse a size or length that the model was not trained for; one that is only published passes.

        Raises:
            ShapeError: names the value, what the model was trained for, and the nearest.
        """
        fault = self.outside(shape, strides)
        if fault is not None and not self.published:
            raise ShapeError(f"{fault}, or allow it with --allow-untrained.")

    def warn_of_size(self, shape: VideoShape, strides: Strides) -> None:
        """Warn of a size or length that the model was not trained for."""
        fault = self.outside(shape, strides)
        if fault is not None:
            warn(f"{fault} for clips as good as the model makes.")

    def unknown_words(self, prompts: str | Iterable[str]) -> list[str]:
        """The words of prompts that were in none of its captions, each once, in order; [] where no words are stated."""
        if not self.words:
            return []
        texts = [prompts] if isinstance(prompts, str) else prompts
        words = [word for text in texts for word in words_of(text)]
        return list(dict.fromkeys(word for word in words if word not in self.words))

    def warn_of_words(self, prompts: str | Sequence[str]) -> None:
        """Warn of words that the model does not know, and say what it does know."""
        unknown = self.unknown_words(prompts)
        if unknown:
            knows = self.world or f"Its words are {' '.join(sorted(self.words))}."
            warn(f"the model does not know {listed(map(repr, unknown), 12)}. {knows}")


LTX_PUBLISHED: Mapping[str, Any] = {"pixels": (1, 720 * 1280), "num_frames": (1, 257), "published": True}
"""What Lightricks recommends: up to 720 x 1280 and 257 frames."""


def widened(stated: Mapping[str, Any] | None, shapes: Iterable[VideoShape]) -> dict[str, Any] | None:
    """The statement of a model that was trained further on footage: more sizes and lengths, any words and pictures.

    Args:
        stated: what the base states, or None.
        shapes: of the footage.
    """
    if stated is None:
        return None
    found = {name: list(stated[name]) for name in _RANGES if stated.get(name) is not None}
    for shape in shapes:
        sides = {"height": shape.height, "width": shape.width, "num_frames": shape.num_frames}
        for name, value in {**sides, "pixels": shape.height * shape.width}.items():
            if name in found:
                found[name] = [min(found[name][0], value), max(found[name][1], value)]
    return found


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation and accents."""
    plain = unicodedata.normalize("NFKD", text)
    return re.findall(r"\w+", "".join(mark for mark in plain if not unicodedata.combining(mark)).lower())


def warn(message: str) -> None:
    """Warn, where the caller of this package stands, of what a model was not trained for; a command shows a note."""
    frame, level = sys._getframe(), 1
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in _INSIDE:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, UntrainedWarning, stacklevel=level)


@contextmanager
def unwarned() -> Iterator[None]:
    """Inside, nothing is said about what a model was not trained for: it is measured."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UntrainedWarning)
        yield


def _clamp(value: int, limits: tuple[int, int] | None) -> int:
    return value if limits is None else min(max(value, limits[0]), limits[1])


def _shown(limits: tuple[int, int] | None) -> str:
    least, most = limits or (0, 0)
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def _range(name: str, value: Any) -> tuple[int, int]:
    numbers = isinstance(value, Sequence) and all(isinstance(v, int) and not isinstance(v, bool) for v in value)
    if not numbers or len(value) != 2 or not 1 <= value[0] <= value[1]:
        raise _malformed(f"{name!r} must be [least, most], two whole numbers of 1 or more")
    return value[0], value[1]


def _malformed(rule: str) -> CheckpointError:
    return CheckpointError(f"{STATEMENT!r} in model_index.json cannot be read: {rule}.")
