"""A score as a line of text: what it is, its interval, its aim, and the ceilings and floors next to it."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

Rate = dict[str, float]
"""A share or a mean: {"mean", "low", "high", "count"}."""

BELOW_VAE: Final = 0.5
"""dB that a known part may lie below its reconstruction."""


class Line(NamedTuple):
    """A row of the table of a tier, as text; `on_page` is False for what only the screen shows."""

    measure: str
    score: str
    interval: str = ""
    aim: str = ""
    ceiling: str = ""
    floors: str = ""
    clips: str = ""
    on_page: bool = True


def share_line(name: str, rate: Rate, aim: float | None = None, ceiling: str = "", floors: str = "") -> Line:
    """A share of clips; `aim` is the least that is wanted."""
    interval = f"{100 * rate['low']:.1f} – {100 * rate['high']:.1f} %"
    said = "" if aim is None else say_aim(rate["mean"] >= aim, f"{100 * aim:.0f} %")
    return Line(name, percent(rate), interval, said, ceiling, floors, f"{rate['count']:.0f}")


def decibel_line(
    name: str, scores: dict[str, Any], key: str, aim: float | None = None, ceiling: str = "", floors: str = ""
) -> Line:
    """A PSNR, `scores[key]`; its interval stands in `scores["intervals"]`, except in older files."""
    low, high = scores.get("intervals", {}).get(key, (None, None))
    interval = "unknown" if low is None else f"{low:.1f} – {high:.1f} dB"
    said = "" if aim is None else say_aim(scores[key] >= aim, f"{aim:.1f} dB")
    hides = aim is not None and scores[key] < aim and f"{scores[key]:.1f}" == f"{aim:.1f}"
    digits = 2 if hides else 1  # what just misses must not look as if it met
    return Line(name, f"{scores[key]:.{digits}f} dB", interval, said, ceiling, floors)


def error_line(name: str, scores: dict[str, Rate], aim: float, also: bool = True, said: str = "") -> Line:
    """An error in pixels, `scores["error"]`; all other entries are its floors. `also` must hold for the aim, too."""
    error = scores["error"]
    floors = [f"{key.replace('_', ' ')} {rate['mean']:.2f} px" for key, rate in scores.items() if key != "error"]
    return Line(
        name,
        f"{error['mean']:.2f} px",
        f"{error['low']:.2f} – {error['high']:.2f} px",
        say_aim(error["mean"] <= aim and also, f"at most {aim} px {said}".strip()),
        floors=", ".join(floors),
        clips=f"{error['count']:.0f}",
    )


def percent(rate: Rate) -> str:
    """The mean of a share."""
    return f"{100 * rate['mean']:.1f} %"


def say_aim(met: bool, aim: str) -> str:
    """The aim, and whether it is met."""
    return f"{aim}: {'met' if met else '**missed**'}"
