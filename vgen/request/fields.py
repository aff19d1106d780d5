"""Types of single fields: what each may hold, and how it is spelled as text."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, Discriminator, Field, Tag, ValidationInfo, WithJsonSchema
from pydantic_core import PydanticCustomError, PydanticKnownError

from vgen.errors import RequestError, counted
from vgen.request.steps import read_sigmas

MAX_SEED = 2**63 - 1
"""Largest seed that every generator takes."""

MAX_FRAME_RATE = 240.0
"""Most frames per second of a clip."""

MAX_PROMPT_CHARACTERS = 10_000
"""Longest text; far beyond what any text encoder reads."""

MAX_LORA_SCALE = 100.0
"""Largest scale of a LoRA, of either sign."""

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def finding(message: str) -> PydanticCustomError:
    """An error of a field that is already worded, see `vgen.request.messages`."""
    return PydanticCustomError("vgen", "{message}", {"message": message})


def reads(read: Callable[[Any, str], Any]) -> BeforeValidator:
    """A validator that calls `read(value, name of the field)`; its RequestError becomes a finding."""

    def validate(value: Any, info: ValidationInfo) -> Any:
        try:
            return read(value, info.field_name or "value")
        except RequestError as error:
            raise finding(str(error)) from None

    return BeforeValidator(validate)


def _refuse_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticKnownError("float_type")
    return value


NOT_BOOL = BeforeValidator(_refuse_bool)
"""For numbers: pydantic takes True for 1."""


def parse_bytes(text: str) -> int:
    """ "4GB", "900 MiB" or a number of bytes -> bytes.

    Raises:
        RequestError: it is not an amount of memory.
    """
    parsed = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", text.lower())
    if parsed is None or float(parsed[1]) == 0:
        raise RequestError(f"{text!r:.40} is not an amount of memory: give for instance 4GB or 900MiB.")
    return int(float(parsed[1]) * _UNITS[parsed[2] or ""])


def read_bytes(value: Any, field: str) -> int:
    """Bytes as a number or as text such as "4GB"."""
    if type(value) is int and value > 0:
        return value
    try:
        return parse_bytes(str(value))
    except RequestError as error:
        raise RequestError(f"{field}={error}") from None


def read_text(value: Any, field: str) -> str:
    """Text that can be encoded: no NUL, no lone surrogate, not absurdly long."""
    if not isinstance(value, str):
        raise RequestError(f"{field}={value!r:.80} is not text.")
    if len(value) > MAX_PROMPT_CHARACTERS:
        raise RequestError(
            f"{field} has {len(value):,} characters; at most {MAX_PROMPT_CHARACTERS:,} are taken. "
            f"It begins {value[:40]!r}."
        )
    bad = re.search("[\x00\ud800-\udfff]", value)
    if bad:
        what = "a NUL character" if bad.group() == "\0" else f"a lone surrogate {bad.group()!r}"
        raise RequestError(f"{field} holds {what} at position {bad.start()}; it is not valid text. Remove it.")
    return value


def read_device(value: Any, field: str) -> str:
    """The name of a device; whether it is there is only known once torch is loaded."""
    if isinstance(value, str) and re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", value):
        return value
    raise RequestError(f"{field}={value!r:.80} is not known: use cpu, cuda, cuda:0 (or another number) or mps.")


def _split_commas(value: Any) -> Any:
    return [part for part in value[:400].split(",") if part.strip()] if isinstance(value, str) else value


def _entries(form: str, example: str, fault: Callable[[str], str | None]) -> BeforeValidator:
    """A validator for a text of a form, or a list of them; `fault` says what is wrong with an entry, or None."""

    def read(value: Any, field: str) -> tuple[str, ...]:
        entries = [value] if isinstance(value, str) else value
        if not isinstance(entries, (list, tuple)) or not entries:
            raise RequestError(f"{field}={value!r:.80} is not a list of {form}; use for instance {example}.")
        for entry in entries:
            wrong = fault(read_text(entry, field))
            if wrong is not None:
                raise RequestError(f"{field}={entry!r:.80} {wrong}")
        return tuple(entries)

    return reads(read)


def split_lora(entry: str) -> tuple[str, float]:
    """ "style.safetensors:0.8" -> its file and its scale, 1 where none is given."""
    file, colon, last = entry.rpartition(":")
    try:
        return (file, float(last)) if colon and file else (entry, 1.0)
    except ValueError:
        return entry, 1.0


def _lora_fault(entry: str) -> str | None:
    file, scale = split_lora(entry)
    if not file.strip():
        return "names no file; use FILE or FILE:SCALE."
    if not abs(scale) <= MAX_LORA_SCALE:
        return f"has a scale outside {-MAX_LORA_SCALE:g} to {MAX_LORA_SCALE:g}; 1 is usual."
    return None


def split_keyframe(entry: str) -> tuple[str, int]:
    """ "picture.png@8" -> its file and its frame."""
    file, _, index = entry.rpartition("@")
    return file, int(index)


def _keyframe_fault(entry: str) -> str | None:
    spelled = re.fullmatch(r".+@-?\d{1,7}", entry, re.DOTALL)
    return None if spelled else "is not FILE@INDEX; use for instance middle.png@8."


def check_keyframes(entries: Sequence[str], num_frames: int) -> None:
    """Refuse keyframes that are outside a clip, on its ends, or twice on the same frame.

    Raises:
        RequestError: names the entry and what would fit.
    """
    taken = {0: "FIRST", num_frames - 1: "LAST"}
    for entry in entries:
        index = split_keyframe(entry)[1]
        place = index + num_frames if index < 0 else index
        if not 0 < place < num_frames - 1 and place not in taken:
            raise RequestError(
                f"keyframes={entry!r} lies outside the clip of {counted(num_frames, 'frame')}: "
                f"use 1 to {num_frames - 2}."
            )
        if place in taken:
            raise RequestError(
                f"keyframes={entry!r} is frame {place}, which {taken[place]} gives already: use another."
            )
        taken[place] = repr(entry)


T = TypeVar("T")


def _one_or_each(value: Any) -> str:
    return "each" if isinstance(value, (list, tuple)) else "one"


def _list_or_lists(value: Any) -> str:
    nested = isinstance(value, (list, tuple)) and any(isinstance(entry, (list, tuple)) for entry in value)
    return "each" if nested else "one"


PerStep = Annotated[
    Annotated[T, Tag("one")] | Annotated[tuple[T, ...], Field(min_length=1), Tag("each")], Discriminator(_one_or_each)
]
"""One value for all steps, or a list with one per step (or one per entry of `guidance_sigmas`)."""

PerPrompt = Annotated[
    Annotated[T, Tag("one")] | Annotated[list[T], Field(min_length=1), Tag("each")], Discriminator(_one_or_each)
]
"""One value for all prompts, or a list with one per prompt."""

Text = Annotated[str, reads(read_text)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), NOT_BOOL]
Scale = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False), NOT_BOOL]
Size = Annotated[int, Field(ge=1, le=1_000_000), NOT_BOOL]
Steps = Annotated[int, Field(ge=1, le=1000), NOT_BOOL]
Seconds = Annotated[float, Field(ge=0.01, le=36_000, allow_inf_nan=False), NOT_BOOL]
Sigmas = Annotated[tuple[float, ...], reads(read_sigmas)]
BYTES = WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string"}]})
Bytes = Annotated[int, reads(read_bytes), BYTES]
Loras = Annotated[tuple[str, ...], _entries("FILE or FILE:SCALE", "a.safetensors:0.8", _lora_fault)]
Keyframes = Annotated[tuple[str, ...], _entries("FILE@INDEX", "middle.png@8", _keyframe_fault)]
_Block = Annotated[int, Field(ge=0, le=999), NOT_BOOL]
Blocks = Annotated[
    Annotated[tuple[_Block, ...], Field(min_length=1), BeforeValidator(_split_commas), Tag("one")]
    | Annotated[tuple[tuple[_Block, ...], ...], Tag("each")],
    Discriminator(_list_or_lists),
]
"""Indices of transformer blocks, from 0, as a list or as text with commas; or a list of such lists, one per step."""
