"""Scores of clips longer and shorter than usual: stories of four prompts, window after window, and single clips of any
length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from vgen.pipelines import MaskedPredictionPipeline, TextToVideoPipeline, VideoCondition
from vgen.request.windows import Window, plan_windows
from vgen.training.data.sprites.captions import caption
from vgen.training.data.sprites.keys import DIRECTIONS, AnswerKey
from vgen.training.data.sprites.splits import stream
from vgen.training.data.sprites.world import SpriteWorld, answer_prompts
from vgen.training.evaluate.resumable import Job, Ledger, Row
from vgen.training.evaluate.scores import Budget, Clips, canvas, generators, judged, rates, share
from vgen.training.judge.judge import Verdict, judge

LENGTHS: Final = (1, 5, 9, 17, 33, 65)
STORY_PROMPTS: Final = 4
OVERLAP: Final = 5  # frames that a window of a story is given
NEAR: Final = 2  # frames from a seam that do not count as inside a window


def story_scores(
    pipeline: TextToVideoPipeline, tier: int, budget: Budget, seed: int, ledger: Ledger, **settings: Any
) -> dict[str, Any]:
    """Stories of four prompts about one object: it goes one way, back, rests, and goes again.

    Each segment is judged as a clip of its own, from the last frame of the one before on. Beside the motions stand
    those of single clips of the same prompts. Where windows meet within a segment nothing is asked to change, so the
    track's acceleration there should be that inside windows.
    """
    make = MaskedPredictionPipeline(**pipeline.components)
    make.set_progress_bar_config(disable=True)
    length = canvas(pipeline).get("num_frames", 17)
    lengths = [length, *[length - 1] * 3]
    stride = pipeline.vae.strides.temporal
    windows = plan_windows(lengths, length, OVERLAP, stride)
    told = [_story(tier, index) for index in range(max(1, budget.prompts // STORY_PROMPTS))]

    def tell(part: range) -> list[Job]:
        stories = [[prompt for prompt, _ in told[number]] for number in part]
        made = make_stories(make, stories, windows, [seed + 1000 * number for number in part], **settings)
        return [(clip, lengths, [key for _, key in told[number]]) for clip, number in zip(made, part, strict=True)]

    rows = ledger.rows(f"stories, tier {tier}", len(told), budget.batch, tell, _followed)
    asked = [entry for keys in told for entry in keys]
    single = _single_clips(pipeline, asked, budget, seed, ledger, f"clips of stories, tier {tier}", **settings)
    return {
        "segment_motion": share([obeyed for row in rows for obeyed in row["motion"]]),
        "single_clip_motion": share([row["motion"] for row in single]),
        "constant": share([row["constant"] for row in rows]),
        "acceleration": _accelerations([_track(row["track"]) for row in rows], windows),
    }


def make_stories(
    pipe: MaskedPredictionPipeline,
    stories: Sequence[Sequence[str]],
    windows: Sequence[Window],
    seeds: Sequence[int],
    **settings: Any,
) -> Clips:
    """Stories side by side: of each what `vgen.pipelines.long_video.make_windows` makes, its first frame a reference.

    Args:
        pipe: of the model.
        stories: the prompts of each, one a segment of the windows.
        windows: of all of them.
        seeds: one a story.
        **settings: of every call.
    Returns:
        uint8 [stories, F, H, W, 3].
    """
    frames: Clips | None = None
    for number, window in enumerate(windows):
        known = [] if frames is None else [
            [VideoCondition(clip[-window.known :]), VideoCondition(clip[0], reference=True)] for clip in frames
        ]  # fmt: skip
        made = pipe(
            conditions=known,
            prompt=[prompts[window.segment] for prompts in stories],
            generator=[torch.Generator().manual_seed(seed + number) for seed in seeds],
            output_type="uint8",
            **{**settings, "num_frames": window.num_frames},
        ).frames[:, window.known : window.known + window.new]
        frames = made if frames is None else np.concatenate([frames, made], axis=1)
    assert frames is not None
    return frames


def _followed(frames: Clips, lengths: Sequence[int], keys: Sequence[AnswerKey]) -> Row:
    seen = [judge(frames[max(0, end - lengths[0]) : end]) for end in np.cumsum(lengths)]
    obeyed = [found.motion == key.objects[0].motion for found, key in zip(seen, keys, strict=True)]
    track = [None if np.isnan(place).any() else place.tolist() for place in judge(frames).centres]
    return {"motion": obeyed, "constant": _is_constant(seen), "track": track}


def _track(places: list[list[float] | None]) -> NDArray[np.float32]:
    """[F, 2], NaN where nothing was seen."""
    return np.asarray([(np.nan, np.nan) if place is None else place for place in places], np.float32)


def length_scores(
    pipeline: TextToVideoPipeline, tier: int, budget: Budget, seed: int, ledger: Ledger, **settings: Any
) -> dict[str, Any]:
    """Text to video at several lengths from the same weights: what the judge finds at each."""
    asked = answer_prompts("test", tier, budget.prompts)
    found = {}
    for length in LENGTHS:
        named = f"{length} frames, tier {tier}"
        keys = [(prompt, key.at_rest() if length == 1 else key) for prompt, key in asked]
        rows = _single_clips(pipeline, keys, budget, seed, ledger, named, **{**settings, "num_frames": length})
        found[str(length)] = rates(rows)
    return found


def _story(tier: int, index: int) -> list[tuple[str, AnswerKey]]:
    """Four prompts and their keys: the first object alone, slowly, so that there is room for the way."""
    rng = stream("story", "test", tier, index)
    key = SpriteWorld("test", tier).scene(index).key
    ways = list(DIRECTIONS)
    there = ways[int(rng.integers(len(ways)))]
    back = min(ways, key=lambda word: float(np.dot(DIRECTIONS[word], DIRECTIONS[there])))
    told = []
    for motion in (there, back, "still", there):
        speed = None if motion == "still" else "slow"
        item = replace(key.objects[0], motion=motion, speed=speed, phases=(), colour_to=None)
        segment = replace(key, objects=(item,), relation=None)
        said = ("colour", "shape", "motion", "background", *(["speed"] if speed else []))
        told.append((caption(segment, rng, require=said), segment))
    return told


def _single_clips(
    pipeline: TextToVideoPipeline,
    asked: list[tuple[str, AnswerKey]],
    budget: Budget,
    seed: int,
    ledger: Ledger,
    name: str,
    **settings: Any,
) -> list[Row]:
    def make(part: range) -> list[Job]:
        prompts = [asked[number][0] for number in part]
        made = pipeline(prompts, generator=generators(seed, part), output_type="uint8", **settings).frames
        return [(clip, asked[number][1]) for clip, number in zip(made, part, strict=True)]

    return ledger.rows(name, len(asked), budget.batch, make, judged)


def _is_constant(segments: list[Verdict]) -> bool:
    """Whether colour and shape stay what they were in the first segment."""
    first = segments[0]
    return first.colour is not None and all((s.colour, s.shape) == (first.colour, first.shape) for s in segments)


def _accelerations(tracks: list[NDArray[np.float32]], windows: list[Window]) -> dict[str, float]:
    """Mean length of the track's second difference, pixels a frame squared: where windows meet, and away from there."""
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
