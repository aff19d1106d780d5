"""Wording that messages share."""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    """A count with its noun: "1 frame", "17 frames", "1,200 bytes".

    Args:
        count: how many.
        noun: in the singular; its plural ends in s.
    """
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
