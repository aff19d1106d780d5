"""Intervals of scores."""

from __future__ import annotations

import numpy as np
import pytest

from vgen.errors import RequestError
from vgen.training.evaluate.intervals import bootstrap_interval, psnr_interval, share_interval, wilson_interval


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


def test_wilsons_interval_is_that_of_the_tables() -> None:
    """Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29."""
    for passed, count, low, high in (
        (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)
    ):  # fmt: skip
        found = wilson_interval(passed, count)
        assert (found.low, found.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))
    for wrong in ((3, 2), (-1, 2), (0, 0)):
        with pytest.raises(RequestError):
            wilson_interval(*wrong)


def test_repeats_that_say_the_same_count_once() -> None:
    rng = np.random.default_rng(0)
    prompts = rng.random(200) < 0.8
    alone = share_interval(prompts.tolist())
    copied = share_interval(np.tile(prompts, 3).tolist(), repeats=3)
    assert copied == pytest.approx(alone, abs=2e-3)
    independent = share_interval((rng.random(600) < 0.8).tolist(), repeats=3)
    assert independent.high - independent.low < 0.75 * (alone.high - alone.low)
    assert share_interval([True] * 30, repeats=3) == wilson_interval(10, 10), "where all agree prompts count"
    with pytest.raises(RequestError):
        share_interval([True] * 4, repeats=3)


def test_the_interval_of_a_psnr_is_in_decibels_and_weighs_pixels() -> None:
    assert psnr_interval([1.0, 1.0, 1.0]) == pytest.approx((48.1308, 48.1308, 48.1308), abs=1e-3)
    found = psnr_interval([1.0, 100.0], weights=[99.0, 1.0])
    assert found.mean == pytest.approx(10 * np.log10(255**2 / 1.99))
    assert found.low == pytest.approx(10 * np.log10(255**2 / 100)) and found.high == pytest.approx(48.1308, abs=1e-3)
    with pytest.raises(RequestError):
        psnr_interval([1.0], weights=[0.0])
