"""Bootstrap intervals."""

from __future__ import annotations

import numpy as np
import pytest

from vgen.errors import RequestError
from vgen.training.statistics import bootstrap_interval


def test_the_interval_of_a_coin_is_that_of_the_binomial() -> None:
    found = bootstrap_interval([True] * 180 + [False] * 20)
    spread = 1.96 * (0.9 * 0.1 / 200) ** 0.5
    assert found.mean == pytest.approx(0.9)
    assert (found.low, found.high) == pytest.approx((0.9 - spread, 0.9 + spread), abs=0.01)


def test_it_is_a_function_of_values_and_seed() -> None:
    values = np.random.default_rng(0).random(50)
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    assert bootstrap_interval(values, seed=3) != bootstrap_interval(values, seed=4)


def test_a_lower_level_is_narrower_and_equal_values_have_no_width() -> None:
    values = np.random.default_rng(0).random(50)
    wide, narrow = bootstrap_interval(values), bootstrap_interval(values, level=0.5)
    assert wide.low < narrow.low < narrow.mean < narrow.high < wide.high
    assert bootstrap_interval([0.25] * 8) == (0.25, 0.25, 0.25)


@pytest.mark.parametrize(("values", "level"), [([], 0.95), ([1.0, float("nan")], 0.95), ([1.0], 1.0)])
def test_what_has_no_interval_is_refused(values: list[float], level: float) -> None:
    with pytest.raises(RequestError):
        bootstrap_interval(values, level=level)
