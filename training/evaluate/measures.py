"""What `vgen evaluate` can measure of a tier, by name."""

from __future__ import annotations

from typing import Final

from vgen.errors import RequestError

BASIC: Final = ("vae", "text_to_video", "image_to_video", "images", "untrained")
ALL: Final = (*BASIC, "prediction", "interpolation", "completion", "stories", "lengths")


def read_measures(tasks: str) -> tuple[str, ...]:
    """What "basic", "all" or a list of names with commas between them asks for, in the order of `ALL`.

    Args:
        tasks: as a user writes them.
    Raises:
        RequestError: one of them is not known, or there is none.
    """
    if tasks in ("basic", "all"):
        return BASIC if tasks == "basic" else ALL
    asked = [name.strip().replace("-", "_") for name in tasks.split(",") if name.strip()]
    unknown = [name for name in asked if name not in ALL]
    if unknown or not asked:
        raise RequestError(f"tasks={tasks!r} is not known: use basic, all, or some of {', '.join(ALL)}.")
    return tuple(name for name in ALL if name in asked)
