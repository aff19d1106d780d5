"""A story: timed prompts for one long clip, read from TOML and checked with nothing loaded."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vgen.errors import RequestError, counted
from vgen.request.fields import NOT_BOOL, Scale, Seconds, Size, Steps, Text, finding
from vgen.request.messages import worded

SETTINGS = ("negative_prompt", "num_inference_steps", "guidance_scale")
"""What a segment may say for itself; left out, it is what the whole story says."""

_NOT_IN_A_STORY = {"task", "prompt", "segments"}

MAX_STORY_BYTES = 1 << 20
"""Largest file that is read as a story."""


class Segment(BaseModel):
    """A stretch of a story with one prompt."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: Text = Field(description="What happens.")
    seconds: Seconds | None = Field(default=None, description="How long it is; or num_frames.")
    num_frames: Size | None = Field(default=None, description="How long it is; or seconds.")
    cross_fade: Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False), NOT_BOOL] = Field(
        default=0.0, description="Seconds over which its prompt takes over from the one before."
    )
    negative_prompt: Text | None = Field(default=None, description="What to keep away from.")
    num_inference_steps: Steps | None = Field(default=None, description="Denoising steps.")
    guidance_scale: Scale | None = Field(default=None, description="Guidance by the text; 1 is off.")

    @model_validator(mode="after")
    def _check_length(self) -> Segment:
        if (self.seconds is None) == (self.num_frames is None):
            raise finding("a segment needs seconds or num_frames, and not both.")
        return self

    def length(self, frame_rate: float) -> int:
        """Frames of the segment."""
        return self.num_frames or max(1, round((self.seconds or 0) * frame_rate))

    @property
    def settings(self) -> dict[str, Any]:
        """Those that it says for itself."""
        return {name: value for name in SETTINGS if (value := getattr(self, name)) is not None}


class Story(BaseModel):
    """Segments one after the other, and what holds for all of them."""

    segments: tuple[Segment, ...]
    fields: dict[str, Any]


def read_story(path: str | Path) -> Story:
    """Read a story.

    Args:
        path: TOML: `[[segment]]` tables, and before them fields of a request (model, seed, width, image ...).
    Raises:
        RequestError: the file is missing, not TOML, without a segment, or one of them is wrong.
    """
    file = Path(path)
    try:
        if file.stat().st_size > MAX_STORY_BYTES:
            raise RequestError(f"story={str(path)!r} has {counted(file.stat().st_size, 'byte')}: that is no story.")
        found = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise RequestError(f"story={str(path)!r} cannot be read: {error.strerror or error}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"story={str(path)!r} is not TOML: {error}.") from None
    tables = found.pop("segment", None)
    if not isinstance(tables, list) or not tables:
        raise RequestError(f"story={str(path)!r} has no [[segment]]: give one or more, each with prompt and seconds.")
    for name in _NOT_IN_A_STORY & found.keys():
        raise RequestError(f"story={str(path)!r} has {name!r} outside its segments, where it means nothing: remove it.")
    return Story(segments=tuple(_segment(path, place, table) for place, table in enumerate(tables)), fields=found)


def _segment(path: str | Path, place: int, table: Any) -> Segment:
    try:
        return Segment.model_validate(table)
    except ValidationError as error:
        raise RequestError(f"story={str(path)!r}, segment {place + 1}: {worded(error, Segment, 'known')}") from None
