"""The tasks of a request."""

from __future__ import annotations

from typing import Literal, get_args

Task = Literal[
    "generate", "animate", "interpolate", "predict", "loop", "inpaint", "outpaint", "extend", "story", "restyle"
]
"""What is made of what."""

TASKS: tuple[str, ...] = get_args(Task)
