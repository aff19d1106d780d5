"""Checks of single request fields: each names the field, the value, the range and the nearest legal value."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from pydantic_core import PydanticCustomError

from vgen.errors import RequestError, counted
from vgen.request.steps import read_sigmas

MAX_SEED = 2**63 - 1
"""Largest seed that every generator takes."""

MAX_FRAME_RATE = 240.0
"""Most frames per second of a clip."""

MAX_PROMPT_CHARACTERS = 10_000
"""Longest text; far beyond what any text encoder reads."""


def _refuse(message: str) -> PydanticCustomError:
    return PydanticCustomError("vgen", "{message}", {"message": message})


def whole_number(field: str, low: int, high: int) -> Callable[[Any], Any]:
    """A check for a whole number from `low` to `high`; text that spells one is taken. None passes."""

    def check(value: Any) -> Any:
        if value is None:
            return None
        found = _as_number(value)
        if found is None:
            raise _refuse(
                f"{field}={value!r:.40} is not a whole number; use one from {low} to {high}, for instance {low}."
            )
        if not math.isfinite(found):
            raise _refuse(f"{field}={value} is not a whole number from {low} to {high}.")
        if not low <= found <= high:
            nearest = low if found < low else high
            raise _refuse(f"{field}={value!s:.40} is outside {low} to {high}; the nearest is {nearest}.")
        if found != int(found):
            raise _refuse(f"{field}={value} is not a whole number; use {math.floor(found)} or {math.ceil(found)}.")
        return int(found)

    return check


def number(field: str, low: float, high: float) -> Callable[[Any], Any]:
    """A check for a finite number from `low` to `high`; text that spells one is taken. None passes."""

    def check(value: Any) -> Any:
        if value is None:
            return None
        found = _as_number(value)
        if found is None or math.isnan(found):
            raise _refuse(f"{field}={value!r:.40} is not a number; use one from {low:g} to {high:g}.")
        if not low <= found <= high:
            nearest = low if found < low else high
            raise _refuse(f"{field}={value!s:.40} is outside {low:g} to {high:g}; the nearest is {nearest:g}.")
        return float(found)

    return check


_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def parse_bytes(text: str) -> int:
    """ "4GB", "900 MiB" or a number of bytes -> bytes.

    Raises:
        RequestError: it is no amount of memory.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", text.lower())
    if found is None or float(found[1]) == 0:
        raise RequestError(f"{text!r:.40} is no amount of memory: give for instance 4GB or 900MiB.")
    return int(float(found[1]) * _UNITS[found[2] or ""])


def memory_amount(field: str) -> Callable[[Any], Any]:
    """A check for an amount of memory, such as "4GB" or a number of bytes; becomes bytes. None passes."""

    def check(value: Any) -> Any:
        if value is None or (type(value) is int and value > 0):
            return value
        try:
            return parse_bytes(str(value))
        except RequestError as error:
            raise _refuse(f"{field}={error}") from None

    return check


def _as_number(value: Any) -> int | float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, float)):
        return value
    if isinstance(value, str) and len(value) <= 400:
        for kind in (int, float):
            try:
                return kind(value.strip())
            except ValueError:
                continue
    return None


def choice(field: str, known: Sequence[str]) -> Callable[[Any], Any]:
    """A check for one of the `known` words. None passes."""

    def check(value: Any) -> Any:
        if value is None or value in known:
            return value
        near = difflib.get_close_matches(str(value)[:80], known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise _refuse(f"{field}={value!r:.80} is not known: use {', '.join(known[:-1])} or {known[-1]}{hint}")

    return check


def sigma_list(field: str) -> Callable[[Any], Any]:
    """A check for a schedule given by hand, see `vgen.request.steps.read_sigmas`. None passes."""

    def check(value: Any) -> Any:
        try:
            return None if value is None else read_sigmas(value, field)
        except RequestError as error:
            raise _refuse(str(error)) from None

    return check


def refusing(check: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A check that keeps the value where `check` takes it; its RequestError becomes a finding. None passes."""

    def checked(value: Any) -> Any:
        try:
            if value is not None:
                check(value)
        except RequestError as error:
            raise _refuse(str(error)) from None
        return value

    return checked


def index_list(field: str, high: int) -> Callable[[Any], Any]:
    """A check for whole numbers from 0 to `high`, as a list or as text with commas. None passes."""
    single = whole_number(field, 0, high)

    def check(value: Any) -> Any:
        if value is None:
            return None
        entries = [part for part in value[:400].split(",") if part.strip()] if isinstance(value, str) else value
        if not isinstance(entries, (list, tuple)) or not entries or None in entries:
            raise _refuse(f"{field}={value!r:.80} is not a list of whole numbers; use for instance 4 or 3,4.")
        return tuple(single(entry) for entry in entries)

    return check


def one_or_each(check: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A check for one value that `check` takes, or for a list of them as a preset has it. None passes."""

    def checked(value: Any) -> Any:
        if isinstance(value, (list, tuple)) and value:
            return tuple(check(entry) for entry in value)
        return check(value)

    return checked


def index_lists(field: str, high: int) -> Callable[[Any], Any]:
    """A check for what `index_list` takes, or for a list of lists of whole numbers, which may be empty. None passes."""
    single = index_list(field, high)

    def check(value: Any) -> Any:
        if isinstance(value, (list, tuple)) and any(isinstance(entry, (list, tuple)) for entry in value):
            return tuple(single(entry) if entry else () for entry in value)
        return single(value)

    return check


MAX_LORA_SCALE = 100.0
"""Largest scale of a LoRA, of either sign."""


def split_lora(entry: str) -> tuple[str, float]:
    """ "style.safetensors:0.8" -> its file and its scale, 1 where none is given."""
    file, colon, last = entry.rpartition(":")
    scale = _as_number(last) if colon else None
    return (entry, 1.0) if scale is None or not file else (file, float(scale))


def _entries(field: str, form: str, example: str, fault: Callable[[str], str | None]) -> Callable[[Any], Any]:
    """A check for one text of a form, or a list of them. None passes.

    Args:
        field: its name.
        form: how an entry is spelled.
        example: an entry.
        fault: what is wrong with an entry, or None.
    """
    readable = text(field)

    def check(value: Any) -> Any:
        if value is None:
            return None
        entries = [value] if isinstance(value, str) else value
        if not isinstance(entries, (list, tuple)) or not entries or None in entries:
            raise _refuse(f"{field}={value!r:.80} is not a list of {form}; use for instance {example}.")
        for entry in entries:
            wrong = fault(readable(entry))
            if wrong is not None:
                raise _refuse(f"{field}={entry!r:.80} {wrong}")
        return tuple(entries)

    return check


def lora_list(field: str) -> Callable[[Any], Any]:
    """A check for FILE or FILE:SCALE, or a list of them. None passes."""

    def fault(entry: str) -> str | None:
        file, scale = split_lora(entry)
        if not file.strip():
            return "names no file; use FILE or FILE:SCALE."
        if not abs(scale) <= MAX_LORA_SCALE:
            return f"has a scale outside {-MAX_LORA_SCALE:g} to {MAX_LORA_SCALE:g}; 1 is usual."
        return None

    return _entries(field, "FILE or FILE:SCALE", "a.safetensors:0.8", fault)


def split_keyframe(entry: str) -> tuple[str, int]:
    """ "picture.png@8" -> its file and its frame."""
    file, _, index = entry.rpartition("@")
    return file, int(index)


def keyframe_list(field: str) -> Callable[[Any], Any]:
    """A check for a list of FILE@INDEX. None passes."""
    example = "middle.png@8"

    def fault(entry: str) -> str | None:
        spelled = re.fullmatch(r".+@-?\d{1,7}", entry, re.DOTALL)
        return None if spelled else f"is not FILE@INDEX; use for instance {example}."

    return _entries(field, "FILE@INDEX", example, fault)


def check_keyframes(entries: Sequence[str], num_frames: int) -> None:
    """Refuse keyframes that lie outside a clip, on its ends, or twice on the same frame.

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


def device_name(value: Any) -> Any:
    """A check for the name of a device; whether it is there is only known once torch is loaded."""
    if value is None or (isinstance(value, str) and re.fullmatch(r"cpu|mps|cuda(:\d{1,3})?", value)):
        return value
    raise _refuse(f"device={value!r:.80} is not known: use cpu, cuda, cuda:0 (or another number) or mps.")


def text(field: str) -> Callable[[Any], Any]:
    """A check for text that can be encoded: no NUL, no lone surrogate, not absurdly long. None passes."""

    def check(value: Any) -> Any:
        if value is None:
            return None
        if not isinstance(value, str):
            raise _refuse(f"{field}={value!r:.80} is not text.")
        if len(value) > MAX_PROMPT_CHARACTERS:
            raise _refuse(
                f"{field} has {len(value):,} characters; at most {MAX_PROMPT_CHARACTERS:,} are taken. "
                f"It begins {value[:40]!r}."
            )
        bad = re.search("[\x00\ud800-\udfff]", value)
        if bad:
            what = "a NUL character" if bad.group() == "\0" else f"a lone surrogate {bad.group()!r}"
            raise _refuse(f"{field} holds {what} at position {bad.start()}; it is not valid text. Remove it.")
        return value

    return check
