"""Scores of stories: what is asked fits into the canvas, seams are told from turns, and constancy can fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vgen.pipelines import MaskedPredictionPipeline
from vgen.pipelines.long_video import Part, make_windows
from vgen.request.windows import plan_windows
from vgen.training.data.sprites.world import SpriteWorld
from vgen.training.evaluate.story_scores import _accelerations, _is_constant, _story, make_stories
from vgen.training.judge.judge import judge

WINDOWS = plan_windows([17, 16, 16, 16], 17, 5, 4)
SEAMS = [24 + 1, 40 + 1, 56 + 1]  # where the two windows of the later segments meet


def _track(jump: float = 0.0) -> np.ndarray:
    """Right, back, rest, right again; at each seam a jump to the side."""
    steps = np.concatenate([np.full(16, 1.0), np.full(16, -1.0), np.zeros(16), np.full(16, 1.0)])
    track = np.stack([np.concatenate([[20.0], 20.0 + np.cumsum(steps)]), np.full(65, 32.0)], axis=1)
    for seam in SEAMS:
        track[seam:, 1] += jump
    return track.astype(np.float32)


def test_stories_have_the_windows_that_the_seams_are_looked_for_in() -> None:
    assert [window.start for window in WINDOWS] == [0, 17, 25, 33, 41, 49, 57]


class Collected:
    """Frames of a story in memory; see `vgen.pipelines.long_video.Frames`."""

    windows_done = 0
    frames = np.zeros((0, 16, 16, 3), np.uint8)

    def append(self, frames: np.ndarray) -> None:
        self.frames = np.concatenate([self.frames, frames])
        self.windows_done += 1

    def last(self, count: int) -> np.ndarray:
        return self.frames[-count:]

    def first(self) -> np.ndarray:
        return self.frames[0]


def test_stories_side_by_side_are_those_made_one_by_one(tiny_pipeline_folder: Path) -> None:
    pipe = MaskedPredictionPipeline.from_pretrained(tiny_pipeline_folder)
    pipe.set_progress_bar_config(disable=True)
    settings: dict[str, Any] = {"height": 16, "width": 16, "num_inference_steps": 2}
    windows = plan_windows([9, 12], 9, 5, 4)
    stories = [["a red circle", "a blue square"], ["a green cross", "a white triangle"]]
    together = make_stories(pipe, stories, windows, [3, 1003], **settings)
    assert together.shape == (2, 21, 16, 16, 3) and (together[0] != together[1]).any()
    for clip, prompts, seed in zip(together, stories, (3, 1003), strict=True):
        alone = Collected()
        make_windows(pipe, [Part(p) for p in prompts], windows, alone, seed, reference="first", **settings)
        assert np.abs(clip.astype(int) - alone.frames).max() <= 1, "equal up to rounding"


def test_a_seam_is_told_from_a_turn() -> None:
    wobble = np.random.default_rng(0).normal(0, 0.05, (65, 2)).astype(np.float32)
    smooth = _accelerations([_track() + wobble], WINDOWS)
    assert smooth["ratio"] == pytest.approx(1.0, abs=0.5) and smooth["where the prompt changes"] > 0.4
    rough = _accelerations([_track(jump=2.0) + wobble], WINDOWS)
    assert rough["ratio"] > 10 and rough["inside"] == pytest.approx(smooth["inside"], rel=1e-3)


def test_prompts_of_a_story_go_there_and_back_about_one_object() -> None:
    for tier in (1, 2):
        told = _story(tier, 5)
        items = [key.objects[0] for _, key in told]
        assert len({(item.colour, item.shape) for item in items}) == 1
        assert items[0].motion == items[3].motion != items[1].motion and items[2].motion == "still"
        for prompt, key in told:
            item = key.objects[0]
            assert item.colour in prompt and item.shape in prompt


def test_constancy_needs_colour_and_shape_throughout() -> None:
    world = SpriteWorld("test", 1)
    first, other = (judge(world.sample(index).frames) for index in (0, 1))
    assert (first.colour, first.shape) != (other.colour, other.shape)
    assert _is_constant([first] * 4) and not _is_constant([first, first, other, first])
    nothing = judge(np.zeros((5, 64, 64, 3), np.uint8))
    assert not _is_constant([nothing] * 4)
