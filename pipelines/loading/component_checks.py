"""What cannot be a component of a pipeline: refused when it is handed in, and by name before a folder is loaded."""

from __future__ import annotations

from typing import Any

import diffusers
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from vgen.errors import RequestError
from vgen.pipelines.call.conventions import OF_COMPONENT

_STOCHASTIC = ("FlowMatchLCMScheduler", "LCMScheduler")
"""What they do is a setting of a call here."""


def check_component(name: str, value: Any) -> None:
    """Refuse a component that a call could not use, with what can be used instead.

    Every token may stand at a sigma of its own (what is given, and what is not), so a scheduler has to step tokens one
    by one: of diffusers' only FlowMatchEulerDiscreteScheduler does.

    Raises:
        RequestError: names what is there and what can be used.
    """
    kind = type(value).__name__
    if name == "scheduler":
        if not isinstance(value, FlowMatchEulerDiscreteScheduler):
            raise RequestError(_refused_scheduler(kind))
        if value.config.invert_sigmas:
            raise RequestError("scheduler has invert_sigmas=True, for models that count noise upwards: leave it out.")
    elif kind in OF_COMPONENT:
        ours = OF_COMPONENT[kind][1]
        raise RequestError(
            f"{name} is diffusers' {kind}: load it as {ours}.from_pretrained(folder), or the whole folder with one "
            "of the pipelines here."
        )


def check_scheduler_entry(entry: Any) -> None:
    """The same for the scheduler that a model_index.json names (library, class), before anything is loaded.

    Raises:
        RequestError: see `check_component`; a class that is not of diffusers is tried.
    """
    name = str(entry[1]) if isinstance(entry, list) and len(entry) == 2 and entry[0] == "diffusers" else ""
    scheduler = getattr(diffusers, name, None)
    if isinstance(scheduler, type) and not issubclass(scheduler, FlowMatchEulerDiscreteScheduler):
        raise RequestError(_refused_scheduler(name))


def _refused_scheduler(name: str) -> str:
    hint = " What it does is stochastic_sampling=True of a call." if name in _STOCHASTIC else ""
    return (
        f"scheduler={name} cannot step tokens that stand at different noise: use FlowMatchEulerDiscreteScheduler, for "
        f"instance FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config, shift=3.0).{hint}"
    )
