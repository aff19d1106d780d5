"""The baselines of the tasks that are known in part, and what is measured against them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vgen.training.data.sprites.world import SpriteWorld
from vgen.training.evaluate.resumable import Ledger, measuring_pool
from vgen.training.evaluate.scores import Budget
from vgen.training.evaluate.task_scores import (
    completion_scores,
    fill_linear,
    fill_nearest,
    hidden_box,
    interpolation_scores,
    prediction_scores,
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


class Oracle:
    """In the place of a model: gives the real clips, moved by some pixels."""

    def __init__(self, shift: int) -> None:
        self.shift = shift
        self.real: dict[bytes, np.ndarray] = {}
        for tier in (1, 3):
            world = SpriteWorld("test", tier, num_frames=17, height=64, width=64, frame_rate=8.0)
            for index in range(8):
                frames = world.sample(index).frames
                self.real[frames[0].tobytes()] = frames

    def __call__(self, conditions: Any, **given: Any) -> SimpleNamespace:
        assert given["keep_known_pixels"] is False
        firsts = [np.asarray(row[0].frames) for row in conditions]
        clips = [self.real[(first if first.ndim == 3 else first[0]).tobytes()] for first in firsts]
        return SimpleNamespace(frames=np.roll(np.stack(clips), self.shift, axis=3))

    def set_progress_bar_config(self, **_: Any) -> None:
        pass


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Any:
    def set_shift(shift: int) -> Any:
        monkeypatch.setattr("vgen.training.evaluate.task_scores.MaskedPredictionPipeline", lambda **_: Oracle(shift))
        monkeypatch.setattr("vgen.training.evaluate.task_scores.reconstruct", lambda pipeline, clips: clips)
        defaults = {"num_frames": 17, "height": 64, "width": 64, "frame_rate": 8.0}
        return SimpleNamespace(components={}, config=SimpleNamespace(defaults=defaults))

    return set_shift


def test_a_model_that_is_right_has_no_error_and_baselines_have(model: Any) -> None:
    predicted = prediction_scores(model(0), 1, BUDGET, 0, Ledger())
    between = interpolation_scores(model(0), 1, BUDGET, 0, Ledger())
    for found in (*predicted.values(), between):
        assert found["error"]["mean"] < 1e-6
        assert found["nearest_copy"]["mean"] > 3
        assert found["error"]["count"] == 4
    assert predicted["given_9"]["nearest_copy"]["mean"] < predicted["given_5"]["nearest_copy"]["mean"]
    assert between["constant_velocity"]["mean"] < between["nearest_copy"]["mean"]
    box = completion_scores(model(0), 1, BUDGET, 0, Ledger())
    assert box["psnr"] > 60 and box["known_psnr"] > 60
    assert box["nearest_copy"] < 30 and box["linear_blend"] < 30


def test_processes_and_batches_change_nothing(model: Any) -> None:
    measures = (prediction_scores, interpolation_scores, completion_scores)
    with measuring_pool(2) as pool:
        for measure in measures:
            found = measure(model(3), 1, BUDGET, 0, Ledger(pool=pool))
            assert found == measure(model(3), 1, BUDGET._replace(batch=1), 0, Ledger())


def test_of_two_objects_both_centres_count(model: Any) -> None:
    predicted = prediction_scores(model(0), 3, BUDGET, 0, Ledger())
    between = interpolation_scores(model(0), 3, BUDGET, 0, Ledger())
    for found in (*predicted.values(), between):
        assert found["error"]["mean"] < 1e-6 < 2 < found["nearest_copy"]["mean"]
        assert found["error"]["count"] == 4


def test_a_model_that_is_off_by_three_pixels_is_measured_so(model: Any) -> None:
    world = SpriteWorld("test", 1, num_frames=17, height=64, width=64, frame_rate=8.0)
    inner = [judge(world.sample(index).frames).centres[:, 0].max() < 50 for index in range(8)]
    assert sum(inner) >= 4, "so that few objects wrap round"
    error = prediction_scores(model(3), 1, BUDGET, 0, Ledger())["given_5"]["error"]["mean"]
    assert 2 < error < 12
    assert completion_scores(model(3), 1, BUDGET, 0, Ledger())["psnr"] < 40
