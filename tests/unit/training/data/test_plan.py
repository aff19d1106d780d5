"""What each step gets: functions of (seed, step, micro, rank)."""

from __future__ import annotations

import pytest
import torch

from vgen.training.config.stages import Stage
from vgen.training.data.plan import Batch, BatchPlan, Draw, batches, workers_of
from vgen.training.randomness import Keys, generator, key_number

STAGES = [
    Stage(steps=3, frames={1: 1.0}, batch={1: 4}),
    Stage(steps=50, frames={1: 0.2, 9: 0.0, 17: 0.8}, batch={1: 4, 9: 3, 17: 2}),
]


class Numbers:
    """A source whose samples are their own indices."""

    fingerprint = "numbers"

    def size(self, num_frames: int) -> int:
        return 1000 * num_frames

    def load(self, draw: Draw) -> Batch:
        return {"indices": torch.tensor(draw.indices), "num_frames": torch.tensor(draw.num_frames)}


def test_keys_depend_on_everything() -> None:
    numbers = {
        key_number(seed, purpose, step, micro, rank)
        for seed in (0, 1)
        for purpose in ("noise", "sigma")
        for step in (0, 1, 11)
        for micro in (0, 1)
        for rank in (0, 1)
    }
    assert len(numbers) == 2 * 2 * 3 * 2 * 2
    assert all(0 <= number < 2**63 for number in numbers)
    first, second = (torch.rand(3, generator=Keys(5, 2).generator("noise")) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(first, torch.rand(3, generator=generator(5, "noise", 2)))


def test_stages_follow_each_other() -> None:
    plan = BatchPlan(STAGES, seed=0)
    assert plan.total_steps == 53
    assert [plan.stage(step) is STAGES[1] for step in (0, 2, 3, 52)] == [False, False, True, True]
    lengths = [plan.draw(step, 0, Numbers()).num_frames for step in range(53)]
    assert lengths[:3] == [1, 1, 1]
    assert 25 < lengths.count(17) < 50
    assert 9 not in lengths


def test_processes_share_the_length_and_not_the_samples() -> None:
    one, two = (BatchPlan(STAGES, seed=0, rank=rank) for rank in (0, 1))
    pairs = [(one.draw(step, 0, Numbers()), two.draw(step, 0, Numbers())) for step in range(53)]
    assert all(first.num_frames == second.num_frames for first, second in pairs)
    assert all(first.indices != second.indices for first, second in pairs)
    assert all(len(first.indices) == (2 if first.num_frames == 17 else 4) for first, _ in pairs)


def test_a_resumed_run_gets_the_same_batches() -> None:
    whole = list(batches(BatchPlan(STAGES, 3), Numbers(), 0, accumulation=2, workers=0))
    rest = list(batches(BatchPlan(STAGES, 3), Numbers(), 40, accumulation=2, workers=0))
    assert len(whole) == 106
    assert len(rest) == 26
    for expected, got in zip(whole[80:], rest, strict=True):
        assert torch.equal(expected["indices"], got["indices"])
        assert int(expected["num_frames"]) == int(got["num_frames"])


def test_workers_change_nothing() -> None:
    alone = list(batches(BatchPlan(STAGES[:1], 3), Numbers(), 0, accumulation=1, workers=0))
    helped = list(batches(BatchPlan(STAGES[:1], 3), Numbers(), 0, accumulation=1, workers=1))
    assert all(torch.equal(a["indices"], b["indices"]) for a, b in zip(alone, helped, strict=True))


def _with_noise(batch: Batch, keys: Keys) -> Batch:
    return {**batch, "noise": keys.normal("noise", batch["indices"].shape)}


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_prepared_belongs_to_the_step(workers: int) -> None:
    made = list(batches(BatchPlan(STAGES, 3), Numbers(), 50, 2, workers, _with_noise))
    for number, batch in enumerate(made, 100):
        expected = Keys(3, number // 2, number % 2).normal("noise", batch["indices"].shape)
        assert torch.equal(batch["noise"], expected)
    assert len(made) == 6


def test_no_more_workers_than_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Numbers()
    assert workers_of(source) == 0
    monkeypatch.setattr(Numbers, "workers", 14, raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    assert workers_of(source) == 4
