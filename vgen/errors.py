"""Every error that vgen raises on purpose, and the exit code the command gives for it."""

from __future__ import annotations


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


class UntrainedWarning(UserWarning):
    """A model is asked for what it was not trained for: a size, a length, words, pictures of another kind."""


def counted(count: int, noun: str) -> str:
    """A count with its noun: "1 frame", "17 frames", "1,200 bytes".

    Args:
        count: how many.
        noun: in the singular; its plural ends in s.
    """
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
