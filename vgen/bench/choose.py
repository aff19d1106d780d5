"""From the words of a command to a scenario."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vgen.bench.scenarios import ARCHITECTURES, Scenario, scenario_named
from vgen.errors import RequestError

STAGES = ("text_encode", "step", "denoise", "decode", "to_host", "end_to_end")
"""What can be timed, in the order of a clip's way."""
_LARGE = ("ltx-2b", "ltx-2b-0.9.0", "ltx-13b")


def choose_scenario(name: str | None, device: str, changes: Mapping[str, Any]) -> Scenario:
    """The scenario asked for, or the one that suits a device, with some values changed.

    Args:
        name: of a scenario; None: ltx-2b on a GPU, cpu-50m elsewhere.
        device: "cpu", "cuda" ...
        changes: fields of Scenario; None keeps the value.
    Raises:
        RequestError: no such scenario, a size that no clip can have, or an unknown dtype.
    """
    on_cpu = not device.startswith("cuda")
    default = "cpu-50m" if on_cpu else "ltx-2b"
    given = dict(changes)
    if name is None and on_cpu and given.get("config") in _LARGE:  # the sizes of cpu-50m take minutes with those
        default = "cpu-tiny"
    if name is None and given.get("config") in ARCHITECTURES and "text_tokens" not in given:
        given["text_tokens"] = 128
    scenario = scenario_named(name or default, **given)
    if scenario.dtype not in ("float32", "bfloat16", "float16"):
        raise RequestError(f"dtype={scenario.dtype!r} is not known: use float32, bfloat16 or float16.")
    for field in ("height", "width", "num_frames", "num_inference_steps"):
        if getattr(scenario, field) < 1:
            raise RequestError(f"{field}={getattr(scenario, field)} must be at least 1.")
    return scenario


def choose_stages(words: str | None) -> tuple[str, ...]:
    """The stages of a list like "step,end_to_end"; None: all.

    Raises:
        RequestError: one of them does not exist.
    """
    if words is None:
        return STAGES
    stages = tuple(words.replace(",", " ").split())
    for stage in stages:
        if stage not in STAGES:
            raise RequestError(f"stages: {stage!r} is not known: use a list of {', '.join(STAGES)}.")
    return stages
