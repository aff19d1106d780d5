"""Captions of clips: from files next to the footage, one text for all, a trigger word, or a vision-language model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from vgen.errors import RequestError
from vgen.io.files import write_text
from vgen.training.data.footage.records import Clip, DataSet, read_texts

Describe = Callable[[Clip], Sequence[str]]
"""Captions of a clip; none is an error of the caller's choice."""


def caption(
    data: DataSet, describe: Describe, on_line: Callable[[str], None], overwrite: bool = False
) -> tuple[int, int]:
    """Write captions/ID.txt for the clips that have none, or for all.

    Args:
        data: the data set.
        describe: gives a clip's captions.
        on_line: called with a line for every clip that `describe` has no caption for.
        overwrite: also replace existing captions.
    Returns:
        The numbers of clips captioned now, and of clips still without a caption.
    """
    written = missing = 0
    for clip in data.clips:
        if data.captions(clip) and not overwrite:
            continue
        try:
            texts = [" ".join(text.split()) for text in describe(clip)]
        except RequestError as error:
            on_line(f"no caption: {error}")
            missing += not data.captions(clip)
            continue
        written += write_text(data.caption_file(clip), "".join(f"{text}\n" for text in texts))
    return written, missing


def sidecar(clip: Clip) -> list[str]:
    """The lines of NAME.txt next to NAME.mp4; of a source with many shots, all have the same.

    Raises:
        RequestError: no such file, or nothing in it.
    """
    path = Path(clip.source).with_suffix(".txt")
    lines = read_texts(path)
    if not lines:
        fault = "is empty" if path.exists() else "is missing"
        raise RequestError(f"{path} {fault}; it should hold the captions of {clip.source}, one per line.")
    return list(lines)


def same_text(text: str) -> Describe:
    """One caption for all clips."""
    if not text.strip():
        raise RequestError("text='' is empty: give the caption of all clips with --text.")
    return lambda clip: [text]


def with_trigger(word: str, others: Describe) -> Describe:
    """A trigger word, followed by what `others` gives for the clip; alone where that raises a RequestError."""
    if not word.strip():
        raise RequestError("trigger='' is empty: give a rare word with --trigger.")

    def describe(clip: Clip) -> list[str]:
        try:
            return [f"{word} {text}" for text in others(clip)]
        except RequestError:
            return [word]

    return describe
