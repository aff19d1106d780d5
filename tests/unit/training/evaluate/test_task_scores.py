"""The baselines of the tasks that are known in part, and what is measured against them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from vgen.training.data.sprites.world import SpriteWorld
from vgen.training.evaluate.model import GIVEN_FRAMES, Budget, ScoredModel
from vgen.training.evaluate.resumable import Measurements, measuring_pool
from vgen.training.evaluate.task_scores import (
    COMPLETION,
    INTERPOLATION,
    fill_linear,
    fill_nearest,
    hidden_box,
    prediction,
)
from vgen.training.judge.judge import judge

BUDGET = Budget(clips=0, prompts=4, seeds=1, batch=3)


def test_filling_is_exact_where_a_clip_is_flat_or_a_slope() -> None:
    known = hidden_box(16, 24)
    assert known.sum() == 16 * 24 - 8 * 12
    slope = np.broadcast_to(np.arange(24, dtype=np.uint8)[None, None, :, None] * 5, (2, 16, 24, 3)).copy()
    hidden = np.where(known[None, ..., None], slope, 99).astype(np.uint8)
    assert np.abs(fill_linear(hidden, known).astype(int) - slope).max() <= 1
    assert np.array_equal(fill_nearest(np.full_like(slope, 7), known), np.full_like(slope, 7))
    filled = fill_nearest(hidden, known)
    assert np.array_equal(filled[:, known], hidden[:, known]) and not (filled == 99).any()
    assert (filled[:, 4, 6:18] == slope[:, 3, 6:18]).all(), "a pixel at the upper border is the one above it"


@dataclass
class Oracle(ScoredModel):
    """In the place of a model: gives the real clips, moved by some pixels."""

    shift: int = 0

    def __post_init__(self) -> None:
        world = self.world()
        clips = [world.sample(index).frames for index in range(8)]
        self.real = {frames[0].tobytes(): frames for frames in clips}

    def world(self, **shape: Any) -> SpriteWorld:
        return SpriteWorld("test", self.tier, num_frames=17, height=64, width=64, frame_rate=8.0)

    def from_known(self, conditions: Any, prompts: Any, numbers: range) -> Any:
        firsts = [np.asarray(row[0].frames) for row in conditions]
        clips = [self.real[(first if first.ndim == 3 else first[0]).tobytes()] for first in firsts]
        return np.roll(np.stack(clips), self.shift, axis=3)

    def restored(self, clips: Any) -> Any:
        return clips


def oracle(shift: int = 0, tier: int = 1, budget: Budget = BUDGET, **given: Any) -> Oracle:
    return Oracle(None, tier, budget, shift=shift, **given)  # type: ignore[arg-type]  # it needs no pipeline


def predicted_by(model: Oracle) -> dict[int, Any]:
    return {given: prediction(given).run(model) for given in GIVEN_FRAMES}


def test_a_model_that_is_right_has_no_error_and_baselines_have() -> None:
    predicted = predicted_by(oracle())
    between = INTERPOLATION.run(oracle())
    for found in (*predicted.values(), between):
        assert found["error"]["mean"] < 1e-6
        assert found["nearest_copy"]["mean"] > 3
        assert found["error"]["count"] == 4
    assert predicted[9]["nearest_copy"]["mean"] < predicted[5]["nearest_copy"]["mean"]
    assert between["constant_velocity"]["mean"] < between["nearest_copy"]["mean"]
    box = COMPLETION.run(oracle())
    assert box["psnr"] > 60 and box["known_psnr"] > 60
    assert box["nearest_copy"] < 30 and box["linear_blend"] < 30


def test_processes_and_batches_change_nothing() -> None:
    one_by_one = BUDGET._replace(batch=1)
    with measuring_pool(2) as pool:
        for measure in (prediction(5), INTERPOLATION, COMPLETION):
            assert measure.run(oracle(3, kept=Measurements(pool=pool))) == measure.run(oracle(3, budget=one_by_one))


def test_of_two_objects_both_centres_count() -> None:
    predicted = predicted_by(oracle(tier=3))
    between = INTERPOLATION.run(oracle(tier=3))
    for found in (*predicted.values(), between):
        assert found["error"]["mean"] < 1e-6 < 2 < found["nearest_copy"]["mean"]
        assert found["error"]["count"] == 4


def test_a_model_that_is_off_by_three_pixels_is_measured_so() -> None:
    world = SpriteWorld("test", 1, num_frames=17, height=64, width=64, frame_rate=8.0)
    inner = [judge(world.sample(index).frames).centres[:, 0].max() < 50 for index in range(8)]
    assert sum(inner) >= 4, "so that few objects wrap round"
    error = prediction(5).run(oracle(3))["error"]["mean"]
    assert 2 < error < 12
    assert COMPLETION.run(oracle(3))["psnr"] < 40
