"""How several processes share a clip: a grid, chosen before anything is loaded."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

from vgen.errors import RequestError

Way = Literal["auto", "branches", "sequence"]
"""How processes can share a clip, see `choose_layout`."""

WAYS = get_args(Way)


class Layout(NamedTuple):
    """Processes as a grid: groups that each compute branches of their own, of processes that share the tokens.

    Process number b * sequence + s has the branches of row b and the tokens of column s.
    """

    branches: int
    sequence: int


def choose_layout(way: str, processes: int, num_branches: int) -> Layout:
    """How processes share a clip.

    Args:
        way: "branches": each computes branches of the guidance; "sequence": each a part of the tokens; "auto": the grid
            of both in which a step takes least, and of those that take the same, the one with most branches side by
            side, which talks least.
        processes: how many there are.
        num_branches: of the guidance: 1 without, 2 with guidance by the text, one more with spatiotemporal guidance.
    Raises:
        RequestError: an unknown way, or more processes than branches to spread.
    """
    if way not in WAYS:
        raise RequestError(f"parallel={way!r} is not known: use one of {', '.join(WAYS)}.")
    if way == "sequence":
        return Layout(1, processes)
    if way == "branches":
        if processes > num_branches:
            raise RequestError(
                f"parallel='branches' finds {num_branches} branches of the guidance for {processes} processes: start "
                f"at most {num_branches}, or use 'auto' or 'sequence', which spread the tokens."
            )
        return Layout(processes, 1)
    grids = [Layout(count, processes // count) for count in range(1, num_branches + 1) if processes % count == 0]
    return min(grids, key=lambda grid: (-(-num_branches // grid.branches) / grid.sequence, -grid.branches))
