"""Which steps a call takes, as far as numbers alone decide it: shared by requests and pipelines, without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from numbers import Real
from typing import Any, NamedTuple

from vgen.errors import RequestError, ShapeError, counted
from vgen.types import Strides, VideoShape

TRAIN_TIMESTEPS = 1000
"""timestep = TRAIN_TIMESTEPS * sigma."""

MAX_STEPS = 1000

MOST_TOKENS = 1 << 24
"""More tokens than any clip has."""

_LARGEST_MU = 80.0  # beyond it e^mu is no float32


class Steps(NamedTuple):
    """How many steps, and their sigmas (descending, without the final 0) where they are given and not computed."""

    num_inference_steps: int | None
    sigmas: tuple[float, ...] | None


def read_sigmas(values: Any, name: str = "sigmas", unit: float = 1.0) -> tuple[float, ...]:
    """Read a schedule given by hand.

    Args:
        values: numbers that descend, or text with commas between them; a final 0 is where it ends anyway.
        name: what errors call it.
        unit: what stands for sigma 1.
    Returns:
        The sigmas, in (0, 1], without a final 0.
    Raises:
        RequestError: names the value and the rule.
    """
    shown = f"{name}={values!r}" if len(repr(values)) <= 80 else f"{name}={repr(values)[:76]} ..."
    if isinstance(values, str):
        values = [part for part in values.replace(" ", ",").split(",") if part]
    elif hasattr(values, "tolist"):
        values = values.tolist()
    rule = f"it must be a list of numbers that descend from at most {unit:g} and stay above 0, one per step"
    try:
        numbers = [float(value) for value in values if not isinstance(value, bool)]
    except (TypeError, ValueError, OverflowError):
        numbers = []
    if numbers and numbers[-1] == 0:
        numbers.pop()
    if not numbers or len(numbers) > MAX_STEPS or not all(math.isfinite(number) for number in numbers):
        raise RequestError(f"{shown}: {rule}, for instance {unit:g}, {0.9 * unit:g}, {0.6 * unit:g}.")
    sigmas = tuple(number / unit for number in numbers)
    if sigmas[0] > 1 or sigmas[-1] <= 0 or any(after >= before for before, after in pairwise(sigmas)):
        raise RequestError(f"{shown}: {rule}.")
    return sigmas


def settle_steps(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> Steps:
    """Decide on the steps of a call, by what the caller gives and what the model was made for.

    Args:
        given: the caller's num_inference_steps, sigmas and timesteps, each None or absent where left out.
        defaults: looked up for num_inference_steps; for `sigmas`, a model's own schedule; and for
            `allowed_inference_steps`, what it can do: numbers of steps (whole, 1 or more), or the only sigmas it knows.
            Where `distilled` is set, the model's own `sigmas` are the only schedule, whole and in order.
    Returns:
        The steps; num_inference_steps is None where nobody says it.
    Raises:
        RequestError: what is given contradicts itself or the model; names the nearest that fits.
    """
    allowed = defaults.get("allowed_inference_steps")
    counts, known_sigmas = _read_allowed(allowed)
    asked = given.get("num_inference_steps")
    sigmas = _given_sigmas(given)
    if sigmas is not None and asked is not None and asked != len(sigmas):
        raise RequestError(
            f"num_inference_steps={asked} and a list of {len(sigmas)} sigmas contradict each other: leave one out."
        )
    if defaults.get("distilled"):
        return _own_schedule(asked, sigmas, defaults.get("sigmas"))
    if sigmas is not None:
        return Steps(_allowed_count(len(sigmas), counts), _allowed_sigmas(sigmas, known_sigmas))
    own = defaults.get("sigmas")
    own = read_sigmas(own, "the model's sigmas") if own is not None else known_sigmas
    if own is not None and asked in (None, len(own)):
        return Steps(len(own), own)
    if asked is not None and counts is not None:
        return Steps(_allowed_count(asked, counts), None)
    if own is not None:
        raise RequestError(
            f"num_inference_steps={asked}: this model was distilled for {len(own)} steps, at sigmas "
            f"{', '.join(f'{sigma:g}' for sigma in own)}; use num_inference_steps={len(own)}, or give sigmas."
        )
    if asked is None:
        asked = defaults.get("num_inference_steps")
        if counts is not None and asked not in counts:
            asked = max(counts)
    return Steps(asked, None)


def skipped_steps(num_steps: int, denoise_strength: float) -> int:
    """How many steps of a schedule are left out at its start where a clip is denoised in part.

    Args:
        num_steps: of the whole schedule.
        denoise_strength: share of them that is run, rounded down, in (0, 1].
    Raises:
        RequestError: no step would be left.
    """
    run = min(num_steps, math.floor(num_steps * denoise_strength + 1e-9))
    if run < 1:
        raise RequestError(
            f"denoise_strength={denoise_strength:g} of {counted(num_steps, 'step')} leaves none to run: use "
            f"{math.ceil(1000 / num_steps) / 1000:g} or more, or num_inference_steps={math.ceil(1 / denoise_strength)}."
        )
    return num_steps - run


def resolution_shift_mu(
    num_tokens: int,
    *,
    base_tokens: int = 1024,
    max_tokens: int = 4096,
    base_shift: float = 0.95,
    max_shift: float = 2.05,
    clamp: bool = False,
) -> float:
    """The shift mu of a sequence, linear in its number of tokens.

    Args:
        num_tokens: tokens of the video (extra condition tokens do not count).
        base_tokens: where mu is `base_shift`.
        max_tokens: where mu is `max_shift`.
        base_shift: see above.
        max_shift: see above.
        clamp: keep mu between the two shifts; off, as the line was fitted, it goes on to both sides.
    Returns:
        mu; sigmas are shifted by e^mu.
    """
    share = (num_tokens - base_tokens) / (max_tokens - base_tokens)
    mu = base_shift + share * (max_shift - base_shift)
    return min(max(mu, base_shift), max_shift) if clamp else mu


def scheduler_mu(scheduler: Mapping[str, Any], num_tokens: int) -> float:
    """The shift mu of a sequence by the configuration of a FlowMatchEulerDiscreteScheduler that shifts by token count.

    Args:
        scheduler: its configuration; diffusers' defaults where it lacks a value.
        num_tokens: tokens of the video.
    """
    return resolution_shift_mu(
        num_tokens,
        base_tokens=scheduler.get("base_image_seq_len", 256),
        max_tokens=scheduler.get("max_image_seq_len", 4096),
        base_shift=scheduler.get("base_shift", 0.5),
        max_shift=scheduler.get("max_shift", 1.15),
    )


def most_tokens(scheduler: Mapping[str, Any], num_steps: int) -> int | None:
    """The longest sequence for which a scheduler that shifts by token count has a schedule.

    The line through its two shifts goes on beyond them, as in diffusers and Lightricks' code. Far beyond, the first
    steps all have sigma 1 in float32, or e^mu overflows; diffusers then fails with IndexError or OverflowError.

    Args:
        scheduler: configuration of a FlowMatchEulerDiscreteScheduler.
        num_steps: number of steps.
    Returns:
        Tokens; None where there is no such limit.
    """
    other = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "invert_sigmas")
    by_tokens = scheduler.get("use_dynamic_shifting") and scheduler.get("time_shift_type", "exponential") != "linear"
    if not by_tokens or num_steps < 2 or any(scheduler.get(name) for name in other):
        return None
    if not _collapses(scheduler, num_steps, MOST_TOKENS):
        return None
    below, above = 1, MOST_TOKENS
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (below, middle) if _collapses(scheduler, num_steps, middle) else (middle, above)
    return below


def check_shift(
    scheduler: Mapping[str, Any], num_steps: int, shape: VideoShape, strides: Strides, sigmas: Any = None
) -> None:
    """Refuse a clip for which the model's scheduler has no schedule, see `most_tokens`.

    Args:
        scheduler: configuration of a FlowMatchEulerDiscreteScheduler.
        num_steps: of the call.
        shape: of the clip.
        strides: pixels per token.
        sigmas: those given by hand, to which the shift does not apply, or None.
    Raises:
        ShapeError: names the size, the largest of this shape that has a schedule, and the other remedy.
    """
    most, tokens = most_tokens(scheduler, num_steps), shape.latent(strides).num_tokens
    if sigmas is not None or most is None or tokens <= most:
        return
    smaller = shape.within(strides, most)
    raise ShapeError(
        f"width={shape.width}, height={shape.height}, num_frames={shape.num_frames} is {tokens:,} tokens: the model's "
        f"scheduler shifts the noise levels with their number, and above {most:,} tokens the first of {num_steps} are "
        f"all 1. Use at most {smaller.width} x {smaller.height} at num_frames={smaller.num_frames}, or give sigmas."
    )


def _collapses(scheduler: Mapping[str, Any], num_steps: int, tokens: int) -> bool:
    """Whether the schedule of this many tokens has two equal timesteps, in the arithmetic of diffusers' scheduler."""
    import numpy as np

    mu = scheduler_mu(scheduler, tokens)
    if not -_LARGEST_MU < mu < _LARGEST_MU:
        return True
    even = np.linspace(1.0, 1.0 / num_steps, num_steps).astype(np.float32)
    sigmas = math.exp(mu) / (math.exp(mu) + (1 / even - 1))
    if scheduler.get("shift_terminal"):
        left = 1 - sigmas
        if not left[-1] > 0:
            return True
        sigmas = 1 - left / (left[-1] / np.float32(1 - scheduler["shift_terminal"]))
    timesteps = sigmas * np.float32(TRAIN_TIMESTEPS)
    return not bool(np.all(np.diff(timesteps) < 0))


def _own_schedule(asked: Any, sigmas: tuple[float, ...] | None, own: Any) -> Steps:
    """The one schedule of a model that learned the velocities between exactly these sigmas."""
    if own is None:
        raise RequestError(
            "the model is marked as distilled, and its defaults have no sigmas: its folder is incomplete."
        )
    own = read_sigmas(own, "the model's sigmas")
    shown = ", ".join(f"{sigma:g}" for sigma in own)
    if asked not in (None, len(own)):
        raise RequestError(
            f"num_inference_steps={asked}: this model was distilled for exactly {len(own)} steps, at sigmas {shown}; "
            f"use num_inference_steps={len(own)}, or leave it out."
        )
    if sigmas is not None and [round(sigma, 4) for sigma in sigmas] != [round(sigma, 4) for sigma in own]:
        given = ", ".join(f"{sigma:g}" for sigma in sigmas)
        raise RequestError(f"sigmas={given}: this model was distilled for exactly {shown}; leave sigmas out.")
    return Steps(len(own), own)


def _given_sigmas(given: Mapping[str, Any]) -> tuple[float, ...] | None:
    sigmas, timesteps = given.get("sigmas"), given.get("timesteps")
    if sigmas is not None and timesteps is not None:
        raise RequestError("sigmas and timesteps are both given: they say the same (timestep = 1000 sigma); give one.")
    if timesteps is not None:
        return read_sigmas(timesteps, "timesteps", TRAIN_TIMESTEPS)
    return None if sigmas is None else read_sigmas(sigmas)


def _read_allowed(allowed: Any) -> tuple[tuple[int, ...] | None, tuple[float, ...] | None]:
    """What a model can do: numbers of steps, or sigmas."""
    if allowed is None:
        return None, None
    values = allowed if isinstance(allowed, (list, tuple)) else [allowed]
    if not values or not all(isinstance(value, Real) and float(value) > 0 for value in values):
        raise RequestError(f"the model's allowed_inference_steps={allowed!r} must be numbers above 0.")
    if all(value >= 1 and value == int(value) for value in values):
        return tuple(sorted(int(value) for value in values)), None
    return None, read_sigmas(sorted(values, reverse=True), "the model's allowed_inference_steps")


def _allowed_count(asked: int, counts: tuple[int, ...] | None) -> int:
    if counts is not None and isinstance(asked, Real) and asked not in counts:
        nearest = min(counts, key=lambda count: abs(count - asked))
        raise RequestError(
            f"num_inference_steps={asked} is not what this model was distilled for "
            f"({', '.join(map(str, counts))}): use {nearest}."
        )
    return asked


def _allowed_sigmas(sigmas: tuple[float, ...], known: tuple[float, ...] | None) -> tuple[float, ...]:
    for sigma in sigmas if known is not None else ():
        if round(sigma, 4) not in {round(value, 4) for value in known or ()}:
            nearest = min(known or (), key=lambda value: abs(value - sigma))
            raise RequestError(
                f"sigmas holds {sigma:g}, which this model was not distilled for "
                f"({', '.join(f'{value:g}' for value in known or ())}): the nearest is {nearest:g}."
            )
    return sigmas
