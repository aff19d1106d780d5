"""What a job is doing, as whoever watches is told: phases, and steps of a known number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Phase = Literal["reading", "loading", "encoding", "denoising", "decoding", "writing"]


@dataclass(frozen=True)
class Progress:
    """Where a job is.

    Attributes:
        phase: what is being done. The parts of a call (a draft, two passes) share the phase "denoising".
        step: steps that are done, over all parts of the call; 0 outside "denoising".
        num_steps: of all parts together; 0 outside "denoising".
        what: what is read, loaded or written, where it has a name.
    """

    phase: Phase
    step: int = 0
    num_steps: int = 0
    what: str = ""


Observer = Callable[[Progress], None]
"""Called between the steps, outside of what a GPU has recorded; it may raise to end the call."""
