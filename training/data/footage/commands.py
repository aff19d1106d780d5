"""The arguments of `vgen data` and `vgen train` as settings."""

from __future__ import annotations

import re

from vgen.errors import RequestError
from vgen.pipelines.loading.model_files import ModelParts
from vgen.training.data.footage.buckets import Geometry, default_lengths


def geometry_for(
    parts: ModelParts,
    num_frames: str | None = None,
    size: str | None = None,
    frame_rate: str | None = None,
    windows: int = 0,
    allow_upscale: bool = False,
) -> Geometry:
    """The samples of a model, by default of its own size, length and frame rate; see `Geometry`.

    Args:
        parts: of the model.
        num_frames: "17,9,1"; None: the model's, half, a quarter ... of it.
        size: "64x64" or several, WIDTHxHEIGHT; None: as many pixels as the model's own size.
        frame_rate: a number or "keep".
    Raises:
        RequestError: not a number, or a size or length that the model cannot have.
    """
    defaults, strides = parts.call_defaults, parts.strides
    lengths = _numbers(num_frames) if num_frames else default_lengths(int(defaults["num_frames"]), strides.temporal)
    sizes = tuple(_size(text) for text in size.split(",")) if size else None
    area = max(h * w for h, w in sizes) if sizes else int(defaults["height"]) * int(defaults["width"])
    rate = None if frame_rate == "keep" else _rate(frame_rate or str(defaults["frame_rate"]))
    geometry = Geometry(strides, tuple(sorted(set(lengths))), area, sizes, rate, windows, allow_upscale)
    geometry.check()
    return geometry


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise RequestError(
            f"num_frames={text!r} is not a comma-separated list of whole numbers; use for example 17,9,1."
        ) from None


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"\s*(\d+)\s*[xX]\s*(\d+)\s*", text)
    if found is None:
        raise RequestError(f"size={text!r} is not WIDTHxHEIGHT, such as 64x64.")
    return int(found[2]), int(found[1])


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate <= 1000:
        raise RequestError(f"frame_rate={text!r} must be between 0 and 1000, or keep.")
    return rate


def shares(field: str, text: str) -> dict[str, float]:
    """ "a=1,b=0.5" as a table; another form is a RequestError."""
    table = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.rpartition("=")
        try:
            table[name.strip()] = float(value)
        except ValueError:
            raise RequestError(f"{field}={text!r}: {part!r} is not NAME=NUMBER.") from None
        if not name.strip() or not 0 <= table[name.strip()] < float("inf"):
            raise RequestError(f"{field}={text!r}: {part!r} needs a name and a number of 0 or more.")
    return table
