"""Every error that vgen raises on purpose with the exit code of the command, and how messages word numbers."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class VgenError(Exception):
    """Base of all errors of this project; `exit_code` is what the command returns for it."""

    exit_code = 1


class RequestError(VgenError, ValueError):
    """The caller asked for something that cannot be done as asked.

    The message names the field, the value, the rule and the nearest legal value.
    """

    exit_code = 2


class ShapeError(RequestError):
    """Sizes that do not fit each other or do not fit the model's strides."""


class MediaError(RequestError):
    """A picture or video that is missing, broken, or not of a kind that can be read."""


class CheckpointError(RequestError):
    """A model folder or weight file that is missing, incomplete or damaged."""


class OutputError(RequestError):
    """The output cannot be written where it was asked for."""


class NonFiniteError(VgenError, RuntimeError):
    """NaN or infinity where numbers were expected; names the step and the dtype."""


class OutOfMemoryError(VgenError, RuntimeError):
    """The device ran out of memory, or would; the message says what would fit.

    Attributes:
        least: bytes that would do; 0 where that is not known.
    """

    least: int = 0


class Cancelled(VgenError, RuntimeError):
    """The caller's `cancelled` said so: the job ended within a step, and no file was left."""

    exit_code = 130


class UntrainedWarning(UserWarning):
    """A model is asked for what it was not trained for: a size, a length, words, pictures of another kind."""


def counted(count: int, noun: str) -> str:
    """A count with its noun: "1 frame", "17 frames", "1,200 bytes".

    Args:
        count: how many.
        noun: in the singular; its plural ends in s.
    """
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def listed(items: Iterable[object], most: int = 5) -> str:
    """The first of some names, and how many more there are: "a, b, c, d, e and 3 more"."""
    names = list(map(str, items))
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def nearest(name: str, known: Iterable[str]) -> str:
    """A question with the known name that is most alike, "did you mean 'prompt'?", or "" where none is."""
    near = difflib.get_close_matches(name[:80], list(known), n=1)
    return f"did you mean {near[0]!r}?" if near else ""


def duration(seconds: float) -> str:
    """A time in words, rounded: "0.42 s", "35 s", "2 min 5 s", "1 h 5 min"."""
    whole = round(seconds)
    if seconds < 10:
        return f"{seconds:.2g} s"
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"


def bytes_text(num_bytes: float) -> str:
    """A size in words, in powers of 1000: "4.25 GB", "63.1 MB", "2.5 kB", "17 bytes"."""
    if num_bytes >= 1e9:
        return f"{num_bytes / 1e9:,.2f} GB"
    if num_bytes >= 1e6:
        return f"{num_bytes / 1e6:.1f} MB"
    return f"{num_bytes / 1e3:.1f} kB" if num_bytes >= 1e3 else counted(round(num_bytes), "byte")
