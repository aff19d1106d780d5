from __future__ import annotations

import pytest

from vgen.errors import bytes_text, duration, listed, nearest


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0 s"), (0.4234, "0.42 s"), (9.97, "10 s"), (35.4, "35 s"), (59.6, "1 min 0 s"), (125, "2 min 5 s"),
     (3599.7, "1 h 0 min"), (3900, "1 h 5 min"), (3.7e6, "1,027 h 46 min")],
)  # fmt: skip
def test_durations_are_rounded_and_carry_over(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (1, "1 byte"), (999, "999 bytes"), (2500, "2.5 kB"), (63_149_999, "63.1 MB"), (4.25e9, "4.25 GB"),
     (2.04e12, "2,040.00 GB")],
)  # fmt: skip
def test_sizes_are_in_the_largest_unit_that_fits(size: float, text: str) -> None:
    assert bytes_text(size) == text


def test_lists_end_with_how_many_more() -> None:
    assert listed(["a", 2]) == "a, 2" and listed([]) == ""
    assert listed(map(str, range(7)), 3) == "0, 1, 2 and 4 more"


def test_the_nearest_name_is_asked_for() -> None:
    assert nearest("widht", ["height", "width"]) == "did you mean 'width'?"
    assert nearest("x" * 10_000, ["height"]) == ""
