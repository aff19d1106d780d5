"""Captions of clips: from files next to the footage, one text for all, a trigger word, or a vision-language model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from vgen.errors import RequestError
from vgen.io.files import write_text
from vgen.training.data.footage.records import Clip, DataSet

NO_CAPTION = (
    "{clips} without a caption, the first is {first}: run `vgen data caption {data} --from "
    "sidecar|text|trigger|model` first, or write them into {data}/captions, one text file a clip, one caption a line."
)

Describe = Callable[[Clip], Sequence[str]]
"""Captions of a clip; none is an error of the caller's choice."""


def caption(data: DataSet, describe: Describe, say: Callable[[str], None], overwrite: bool = False) -> tuple[int, int]:
    """Write captions/ID.txt for the clips that have none.

    Args:
        data: the data set.
        describe: gives a clip's captions.
        say: called for every clip without one, with the reason.
        overwrite: also replace captions that are there.
    Returns:
        How many clips got captions now, and how many still have none.
    """
    written = missing = 0
    for clip in data.clips:
        if data.captions(clip) and not overwrite:
            continue
        try:
            texts = [" ".join(text.split()) for text in describe(clip)]
        except RequestError as error:
            say(f"no caption: {error}")
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
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    except FileNotFoundError:
        raise RequestError(f"{path} is missing; it should hold the captions of {clip.source}, one per line.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path} cannot be read as UTF-8 text: {error}.") from None
    if not lines:
        raise RequestError(f"{path} is empty; it should hold the captions of {clip.source}, one per line.")
    return lines


def same_text(text: str) -> Describe:
    """One caption for all clips."""
    if not text.strip():
        raise RequestError("text='' is empty: give the caption of all clips with --text.")
    return lambda clip: [text]


def with_trigger(word: str, others: Describe) -> Describe:
    """A trigger word, before a clip's own captions where it has some.

    Args:
        word: put first.
        others: the clip's own captions; a RequestError of theirs leaves the word alone.
    """
    if not word.strip():
        raise RequestError("trigger='' is empty: give a word that nothing else is called by, with --trigger.")

    def describe(clip: Clip) -> list[str]:
        try:
            return [f"{word} {text}" for text in others(clip)]
        except RequestError:
            return [word]

    return describe
