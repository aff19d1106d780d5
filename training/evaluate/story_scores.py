"""Scores of clips longer and shorter than usual: stories of four prompts, window after window, and single clips of any
length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from vgen.request.windows import Window, plan_windows
from vgen.training.data.sprites.captions import caption
from vgen.training.data.sprites.keys import DIRECTIONS, AnswerKey
from vgen.training.data.sprites.splits import stream
from vgen.training.data.sprites.world import SpriteWorld, answer_prompts
from vgen.training.evaluate.intervals import share
from vgen.training.evaluate.lines import Line, percent, share_line
from vgen.training.evaluate.measure import Measure, Scores, Series, TierScores, per_prompt
from vgen.training.evaluate.model import Budget, Clips, ScoredModel, canvas, generators
from vgen.training.evaluate.resumable import Job, Row
from vgen.training.evaluate.scores import judged, rates
from vgen.training.judge.judge import Verdict, judge

if TYPE_CHECKING:
    from vgen.pipelines import MaskedPredictionPipeline

LENGTHS: Final = (1, 5, 9, 17, 33, 65)
STORY_PROMPTS: Final = 4
OVERLAP: Final = 5  # frames that a window of a story is given
NEAR: Final = 2  # frames from a seam that do not count as inside a window


def _num_stories(budget: Budget) -> int:
    return max(1, budget.prompts // STORY_PROMPTS)


def _stories(model: ScoredModel) -> Series:
    pipeline = model.predictor()
    length = canvas(model.pipeline).get("num_frames", 17)
    lengths = [length, *[length - 1] * (STORY_PROMPTS - 1)]
    windows = plan_windows(lengths, length, OVERLAP, model.pipeline.vae.strides.temporal)
    stories = [_story(model.tier, index) for index in range(_num_stories(model.budget))]

    def make(numbers: range) -> list[Job]:
        prompts = [[prompt for prompt, _ in stories[number]] for number in numbers]
        seeds = [model.seed + 1000 * number for number in numbers]
        made = make_stories(pipeline, prompts, windows, seeds, **model.settings)
        keys = [[key for _, key in stories[number]] for number in numbers]
        return [(clip, lengths, asked) for clip, asked in zip(made, keys, strict=True)]

    def scores(rows: list[Row]) -> Scores:
        return {
            "segment_motion": share([obeyed for row in rows for obeyed in row["motion"]]),
            "constant": share([row["constant"] for row in rows]),
            "acceleration": _accelerations([_track(row["track"]) for row in rows], windows),
        }

    return Series(len(stories), make, scores)


def _followed(frames: Clips, lengths: Sequence[int], keys: Sequence[AnswerKey]) -> Row:
    seen = [judge(frames[max(0, end - lengths[0]) : end]) for end in np.cumsum(lengths)]
    obeyed = [found.motion == key.objects[0].motion for found, key in zip(seen, keys, strict=True)]
    track = [None if np.isnan(place).any() else place.tolist() for place in judge(frames).centres]
    return {"motion": obeyed, "constant": _is_constant(seen), "track": track}


def _track(places: list[list[float] | None]) -> NDArray[np.float32]:
    """[F, 2], NaN where nothing was seen."""
    return np.asarray([(np.nan, np.nan) if place is None else place for place in places], np.float32)


def _story_lines(scores: Scores, tier: TierScores) -> Iterator[Line]:
    alone = f"single clips {percent(scores['single_clip_motion'])}"
    yield share_line("stories of four prompts: motion of a segment", scores["segment_motion"], None, alone)
    yield share_line("stories: colour and shape constant", scores["constant"])
    bends = scores["acceleration"]
    inside = f"inside windows {bends['inside']:.2f} px"
    yield Line("stories: acceleration where windows meet", f"{bends['seam']:.2f} px a frame²", ceiling=inside)


STORIES: Final = Measure(
    task="stories", name="stories, tier {tier}", make=_stories, measure=_followed, count=_num_stories, cost=9.0,
    lines=_story_lines,
)  # fmt: skip
"""Stories of four prompts about one object: it goes one way, back, rests, and goes again.

Each segment is judged as a clip of its own, from the last frame of the previous one. Where windows meet within a
segment nothing is asked to change, so the track's acceleration there should be that inside windows.
"""


def _clips_of_stories(model: ScoredModel) -> Series:
    asked = [entry for index in range(_num_stories(model.budget)) for entry in _story(model.tier, index)]
    return _single_clips(model, asked, lambda rows: {"single_clip_motion": share([row["motion"] for row in rows])})


CLIPS_OF_STORIES: Final = Measure(
    task="stories", name="clips of stories, tier {tier}", make=_clips_of_stories, measure=judged,
    count=lambda budget: _num_stories(budget) * STORY_PROMPTS,
)  # fmt: skip
"""What stories are compared with: single clips of the same prompts."""


def _of_length(model: ScoredModel, length: int) -> Series:
    asked = answer_prompts("test", model.tier, model.budget.prompts)
    keys = [(prompt, key.at_rest() if length == 1 else key) for prompt, key in asked]
    return _single_clips(model, keys, rates, num_frames=length)


def _length_lines(length: int, scores: Scores, tier: TierScores) -> Iterator[Line]:
    yield share_line(f"{length} {'frame' if length == 1 else 'frames'}: joint", scores["joint"])


def of_length(length: int) -> Measure:
    """Text to video at another length from the same weights: what the judge finds."""
    return Measure(
        task="lengths", part=str(length), name=f"{length} frames, tier {{tier}}",
        make=partial(_of_length, length=length), measure=judged, count=per_prompt, cost=0.25 + length / 20,
        lines=partial(_length_lines, length),
    )  # fmt: skip


def make_stories(
    pipe: MaskedPredictionPipeline,
    stories: Sequence[Sequence[str]],
    windows: Sequence[Window],
    seeds: Sequence[int],
    **settings: Any,
) -> Clips:
    """Several stories in one batch; each is what `vgen.pipelines.long_video.make_windows` makes, reference="first".

    Args:
        pipe: of the model.
        stories: the prompts of each, one per segment of the windows.
        windows: of all of them.
        seeds: one per story.
        **settings: of every call.
    Returns:
        uint8 [stories, F, H, W, 3].
    """
    from vgen.pipelines import VideoCondition

    frames: Clips | None = None
    for number, window in enumerate(windows):
        known = [] if frames is None else [
            [VideoCondition(clip[-window.known :]), VideoCondition(clip[0], reference=True)] for clip in frames
        ]  # fmt: skip
        made = pipe(
            conditions=known,
            prompt=[prompts[window.segment] for prompts in stories],
            generator=[generator for seed in seeds for generator in generators(seed + number, range(1))],
            output_type="uint8",
            **{**settings, "num_frames": window.num_frames},
        ).frames[:, window.known : window.known + window.new]
        frames = made if frames is None else np.concatenate([frames, made], axis=1)
    assert frames is not None
    return frames


def _story(tier: int, index: int) -> list[tuple[str, AnswerKey]]:
    """Four prompts and their keys: the first object alone, slowly, so that there is room for the way."""
    rng = stream("story", "test", tier, index)
    key = SpriteWorld("test", tier).scene(index).key
    ways = list(DIRECTIONS)
    there = ways[int(rng.integers(len(ways)))]
    back = min(ways, key=lambda word: float(np.dot(DIRECTIONS[word], DIRECTIONS[there])))
    story = []
    for motion in (there, back, "still", there):
        speed = None if motion == "still" else "slow"
        item = replace(key.objects[0], motion=motion, speed=speed, phases=(), colour_to=None)
        segment = replace(key, objects=(item,), relation=None)
        mentioned = ("colour", "shape", "motion", "background", *(["speed"] if speed else []))
        story.append((caption(segment, rng, require=mentioned), segment))
    return story


def _single_clips(
    model: ScoredModel, asked: list[tuple[str, AnswerKey]], scores: Callable[[list[Row]], Scores], **settings: Any
) -> Series:
    def make(numbers: range) -> list[Job]:
        made = model.from_text([asked[number][0] for number in numbers], numbers, **settings)
        return [(clip, asked[number][1]) for clip, number in zip(made, numbers, strict=True)]

    return Series(len(asked), make, scores)


def _is_constant(segments: list[Verdict]) -> bool:
    """Whether colour and shape stay what they were in the first segment."""
    first = segments[0]
    return first.colour is not None and all((s.colour, s.shape) == (first.colour, first.shape) for s in segments)


def _accelerations(tracks: list[NDArray[np.float32]], windows: list[Window]) -> dict[str, float]:
    """Mean length of the track's second difference, pixels per frame squared, where windows meet and elsewhere."""
    seams = {window.start for window, before in zip(windows[1:], windows, strict=False)
             if window.segment == before.segment}  # fmt: skip
    turns = {window.start for window in windows[1:]} - seams
    bends = [np.linalg.norm(np.diff(track, 2, axis=0), axis=1) for track in tracks]  # bend i is that of frame i + 1

    def mean(frames: set[int]) -> float:
        values = np.concatenate([bend[sorted(frame - 1 for frame in frames)] for bend in bends])
        return float(np.nanmean(values))

    around = {frame + step for frame in seams | turns for step in range(-1 - NEAR, 1 + NEAR)}
    inside = set(range(1, len(tracks[0]) - 1)) - around
    found = {"inside": mean(inside), "seam": mean({frame + step for frame in seams for step in (-1, 0)})}
    turning = mean({frame + step for frame in turns for step in (-1, 0)})
    return {**found, "ratio": found["seam"] / found["inside"], "where the prompt changes": turning}
