"""What a job is doing, as events: pipelines and jobs emit them, and every face (bar, JSON lines, page) renders them.

Plain facts without torch. `as_json` is the form in which they leave the process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Event:
    """Base of all events."""

    @property
    def name(self) -> str:
        """The kind of event in lower case: "queued", "step" ..."""
        return type(self).__name__.lower()


@dataclass(frozen=True)
class Queued(Event):
    """The job waits for a runner."""


@dataclass(frozen=True)
class Note(Event):
    """Something worth saying about the inputs or the way of working; `text` is a sentence."""

    text: str


@dataclass(frozen=True)
class Part(Event):
    """The work that follows is for one of several parts: clip or window `number` of `count`."""

    kind: str
    number: int
    count: int


@dataclass(frozen=True)
class Reading(Event):
    """The file or model `what` is being read."""

    what: str


@dataclass(frozen=True)
class Loading(Event):
    """The model `what` is being loaded."""

    what: str


@dataclass(frozen=True)
class Encoding(Event):
    """Prompts and given pixels are being encoded."""


@dataclass(frozen=True)
class Step(Event):
    """Denoising: `step` of `num_steps` steps are done. Drafts, passes and windows are one sequence.

    Attributes:
        step: steps that are done; 0 when the loop begins.
        num_steps: of the whole sequence, as far as is known.
        seconds_left: estimated until the last step; None where nothing is known yet, or nobody measures.
    """

    step: int
    num_steps: int
    seconds_left: float | None = None


@dataclass(frozen=True)
class Preview(Event):
    """What the model predicts now; emitted only where previews are asked for.

    Attributes:
        step: the step that predicted it, from 1; num_steps as in Step.
        latents: the predicted clean clip, normalised latents [B, C, f, h, w] on the device, to be copied at once.
    """

    step: int
    num_steps: int
    latents: Any


@dataclass(frozen=True)
class Decoding(Event):
    """Latents are being decoded to frames."""


@dataclass(frozen=True)
class Writing(Event):
    """The output `what` is being written."""

    what: str


@dataclass(frozen=True)
class Done(Event):
    """The clip is written.

    Attributes:
        path: of the clip.
        num_frames, width, height, frame_rate: of the clip that the model made.
        scale: how many times as large it was written.
        num_bytes: of the file, or of all files of the folder.
        seconds: from the first event of the run to the last.
        seed: of the noise.
        model: name or folder.
    """

    path: str
    num_frames: int
    width: int
    height: int
    frame_rate: float
    scale: int
    num_bytes: int
    seconds: float
    seed: int
    model: str


@dataclass(frozen=True)
class Failed(Event):
    """The job ended with an error.

    Attributes:
        message: what the error says.
        exit_code: what the command returns for it.
    """

    message: str
    exit_code: int


@dataclass(frozen=True)
class Cancelled(Event):
    """The job was cancelled or interrupted; no file was left."""


Observer = Callable[[Event], None]
"""Called between the steps, outside of what a GPU has recorded; it may raise to end the call."""


def as_json(event: Event) -> dict[str, Any]:
    """An event as a JSON object: its name as "event", then its fields; the tensor of a preview is left out."""
    values = {field.name: getattr(event, field.name) for field in fields(event) if field.name != "latents"}
    return {"event": event.name, **values}
