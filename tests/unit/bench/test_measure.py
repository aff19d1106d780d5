"""The arithmetic of the benchmark: pairs, intervals, order, and what is refused."""

import pytest
import torch

from vgen.bench.measure import (
    allocated_peak,
    attention_used,
    full_float32,
    interleaved,
    memory_peaks,
    paired_ratio,
    quantile,
    rounds_within,
)
from vgen.bench.scenarios import ARCHITECTURES, SCENARIOS, choose_scenario, choose_stages
from vgen.errors import RequestError

CPU = torch.device("cpu")


def test_runs_go_forwards_then_backwards():
    order = []
    works = {name: lambda name=name: order.append(name) for name in "ABC"}
    times = interleaved(works, 2, CPU)
    assert order == list("ABCCBA" * 2)
    assert {name: len(values) for name, values in times.items()} == {"A": 4, "B": 4, "C": 4}


def test_a_ratio_is_taken_within_its_round():
    """A machine that slows down tenfold halfway changes no paired ratio."""
    ours = [1.0, 1.0] * 5 + [10.0, 10.0] * 5
    peer = [1.0, 2.0] * 5 + [15.0, 15.0] * 5
    assert paired_ratio(ours, peer)[:3] == (1.5, 1.5, 1.5)


def test_the_interval_of_ten_rounds_leaves_out_one_at_each_end():
    peer = [value for round_ in range(1, 11) for value in (round_, round_)]
    ratio = paired_ratio([1.0] * 20, peer)
    assert (ratio.median, ratio.low, ratio.high) == (5.5, 2, 9)
    assert ratio.confidence == pytest.approx(1 - 2 * (1 + 10) / 2**10)  # binomial, by hand


def test_few_rounds_give_their_range_and_say_how_little_that_is():
    ratio = paired_ratio([1.0] * 4, [1.0, 1.0, 3.0, 3.0])
    assert (ratio.low, ratio.high, ratio.confidence) == (1.0, 3.0, 0.5)


def test_quantiles_are_interpolated():
    assert quantile([3.0, 1.0, 2.0, 4.0], 0.5) == 2.5
    assert quantile([1.0, 2.0], 0.9) == pytest.approx(1.9)


@pytest.mark.parametrize(("once", "left", "found"), [(1.0, 5.0, 2), (1.0, 100.0, 10), (1.0, 1.0, 1), (1.0, -3.0, 1)])
def test_rounds_fit_the_time_that_is_left_and_are_never_none(once, left, found):
    assert rounds_within(10, once, left) == found


def test_float32_is_float32_inside_and_what_it_was_afterwards():
    switches = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [switch.allow_tf32 for switch in switches]
    with pytest.raises(KeyError), full_float32():
        assert not any(switch.allow_tf32 for switch in switches)
        raise KeyError
    assert [switch.allow_tf32 for switch in switches] == before and before[1]


def test_both_peaks_of_memory_are_told():
    peak, allocated = memory_peaks(lambda: torch.ones(1 << 22), CPU)
    assert 4 << 22 <= allocated < 5 << 22
    assert peak is None or peak > allocated


def test_allocated_memory_is_what_is_alive_at_once():
    kept = torch.ones(1 << 20)

    def work():
        first = torch.ones(1 << 18)
        second = first + 1
        del first
        third = kept[: 1 << 17] * 2  # a view of what was there before is nothing new
        return second, third

    for _ in range(2):
        assert 0 <= allocated_peak(work) - 4 * (2 << 18) < 100  # numbers among tensors take some bytes
    clip = torch.ones(1, 16, 5, 32, 32)
    weight = torch.ones(16, 16, 1, 3, 3)
    assert allocated_peak(lambda: torch.nn.functional.conv3d(clip, weight)) >= 4 * 16 * 5 * 30 * 30


def test_the_attention_that_ran_is_named():
    query = torch.randn(1, 2, 8, 16)
    used = attention_used(lambda: torch.nn.functional.scaled_dot_product_attention(query, query, query))
    assert used and all("attention" in name for name in used)
    assert attention_used(lambda: query + query) == []


def test_every_scenario_has_its_model_and_a_size_that_fits_it():
    for scenario in SCENARIOS.values():
        assert scenario.config in ARCHITECTURES or scenario.config == "sprites"
        assert (scenario.num_frames - 1) % 4 == 0 and scenario.height % 8 == 0


@pytest.mark.parametrize(
    ("device", "changes", "name"),
    [("cpu", {}, "cpu-50m"), ("cuda", {}, "ltx-2b"), ("cpu", {"config": "ltx-2b"}, "cpu-tiny")],
)
def test_the_default_suits_the_device(device, changes, name):
    assert choose_scenario(None, device, changes).name == name


@pytest.mark.parametrize(
    "call",
    [
        lambda: choose_scenario("cpu-51m", "cpu", {}),
        lambda: choose_scenario("cpu-50m", "cpu", {"dtype": "int3"}),
        lambda: choose_scenario("cpu-50m", "cpu", {"height": 0}),
        lambda: choose_stages("step,stop"),
    ],
)
def test_nonsense_is_refused(call):
    with pytest.raises(RequestError, match=r"use|must"):
        call()
