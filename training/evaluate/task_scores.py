"""Scores of the tasks whose clip is known in part: prediction, interpolation, completion; baselines beside each.

Pixels are never pasted back. Centres are the judge's, in made clips and in real ones alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vgen.pipelines import MaskedPredictionPipeline, TextToVideoPipeline, VideoCondition
from vgen.training.data.sprites.keys import AnswerKey
from vgen.training.data.sprites.world import SpriteClip, SpriteWorld
from vgen.training.evaluate.intervals import bootstrap_interval
from vgen.training.evaluate.resumable import Job, Ledger, Row
from vgen.training.evaluate.scores import (
    Budget,
    Clips,
    canvas,
    decibels,
    full_prompt,
    generators,
    reconstruct,
    squared_error,
    with_intervals,
)
from vgen.training.judge.judge import centres_of

GIVEN: Final = (5, 9)  # frames that a prediction is given
UNIT: Final = 64  # errors are in pixels of a short side of 64
MISSED: Final = 32.0  # error of a clip in whose frame nothing is found

Centres = NDArray[np.float32]


def prediction_scores(
    pipeline: TextToVideoPipeline, tier: int, budget: Budget, seed: int, ledger: Ledger, **settings: Any
) -> dict[str, Any]:
    """Error of the centre in the last frame, of moving clips of which the first frames are given."""
    clips, real = _moving(pipeline, tier, budget.prompts, ledger)
    found = {}
    for given in GIVEN:
        conditions = [[VideoCondition(clip.frames[:given])] for clip in clips]
        made = _make(
            pipeline, clips, conditions, budget, seed, ledger, f"prediction of {given}, tier {tier}",
            lambda made, part: [(clip, clips[i].key, -1) for clip, i in zip(made, part, strict=True)], _placed,
            **settings,
        )  # fmt: skip
        steady = [_extrapolated(track[:given], len(track) - 1) for track in real]
        true = [track[-1] for track in real]
        found[f"given_{given}"] = {
            "error": _errors([_centre(row, like) for row, like in zip(made, true, strict=True)], true, clips),
            "nearest_copy": _errors([track[given - 1] for track in real], true, clips),
            "constant_velocity": _errors(steady, true, clips),
        }
    return found


def interpolation_scores(
    pipeline: TextToVideoPipeline, tier: int, budget: Budget, seed: int, ledger: Ledger, **settings: Any
) -> dict[str, Any]:
    """Error of the centre in the middle frame, of moving clips of which first and last frame are given."""
    clips, real = _moving(pipeline, tier, budget.prompts, ledger)
    middle = len(clips[0].frames) // 2
    conditions = [[VideoCondition(c.frames[0]), VideoCondition(c.frames[-1], frame_index=-1)] for c in clips]
    made = _make(
        pipeline, clips, conditions, budget, seed, ledger, f"interpolation, tier {tier}",
        lambda made, part: [(clip, clips[i].key, middle) for clip, i in zip(made, part, strict=True)], _placed,
        **settings,
    )  # fmt: skip
    true = [track[middle] for track in real]
    blends = [track[middle] for track in ledger.map(centres_of, ((_blended(c.frames), c.key) for c in clips))]
    return {
        "error": _errors([_centre(row, like) for row, like in zip(made, true, strict=True)], true, clips),
        "nearest_copy": _errors([track[0] for track in real], true, clips),
        "linear_blend": _errors(blends, true, clips),
        "constant_velocity": _errors([(track[0] + track[-1]) / 2 for track in real], true, clips),
    }


def completion_scores(
    pipeline: TextToVideoPipeline, tier: int, budget: Budget, seed: int, ledger: Ledger, **settings: Any
) -> dict[str, Any]:
    """PSNR of a hidden box in the middle of every frame, half as wide and high, and of what is known."""
    world = SpriteWorld("test", tier, **canvas(pipeline))
    clips = [world.sample(index) for index in range(budget.prompts)]
    known = hidden_box(*clips[0].frames.shape[1:3])
    conditions = [[VideoCondition(clip.frames, mask=known.astype(np.float32))] for clip in clips]

    def jobs(made: Clips, part: range) -> Iterable[Job]:
        originals = np.stack([clips[i].frames for i in part])
        return ((*pair, known) for pair in zip(originals, made, reconstruct(pipeline, originals), strict=True))

    rows = _make(
        pipeline, clips, conditions, budget, seed, ledger, f"completion, tier {tier}", jobs, _completed, **settings
    )

    def filled(fill: Callable[[Clips, NDArray[np.bool_]], Clips]) -> dict[str, float]:
        return decibels(list(ledger.map(_filled, ((clip.frames, known, fill) for clip in clips))))

    return with_intervals(
        {
            "psnr": decibels([row["error"] for row in rows]),
            "nearest_copy": filled(fill_nearest),
            "linear_blend": filled(fill_linear),
            "vae": decibels([row["vae_error"] for row in rows]),
            "known_psnr": decibels([row["known_error"] for row in rows]),
            "vae_known_psnr": decibels([row["vae_known_error"] for row in rows]),
        }
    )


def _completed(original: Clips, made: Clips, restored: Clips, known: NDArray[np.bool_]) -> Row:
    errors, coded = squared_error(original, made), squared_error(original, restored)
    return {
        "error": float(errors[:, ~known].mean()),
        "known_error": float(errors[:, known].mean()),
        "vae_error": float(coded[:, ~known].mean()),
        "vae_known_error": float(coded[:, known].mean()),
    }


def _filled(original: Clips, known: NDArray[np.bool_], fill: Callable[[Clips, NDArray[np.bool_]], Clips]) -> float:
    """The squared error of what fills the hidden box."""
    return float(squared_error(original, fill(original, known))[:, ~known].mean())


def hidden_box(height: int, width: int) -> NDArray[np.bool_]:
    """bool [H, W], False in a box in the middle."""
    known = np.ones((height, width), bool)
    known[height // 4 : height - height // 4, width // 4 : width - width // 4] = False
    return known


def fill_nearest(clips: Clips, known: NDArray[np.bool_]) -> Clips:
    """Every hidden pixel is the known pixel of its frame that is nearest to it."""
    hidden, seen = np.argwhere(~known), np.argwhere(known)
    nearest = seen[np.square(hidden[:, None] - seen[None]).sum(-1).argmin(1)]
    filled = clips.copy()
    filled[..., hidden[:, 0], hidden[:, 1], :] = clips[..., nearest[:, 0], nearest[:, 1], :]
    return filled


def fill_linear(clips: Clips, known: NDArray[np.bool_]) -> Clips:
    """The hidden box is the mean of a line from its left to its right and one from its upper to its lower border."""
    rows, columns = (np.flatnonzero((~known).any(axis)) for axis in (1, 0))
    (top, bottom), (left, right) = ((line[0], line[-1] + 1) for line in (rows, columns))
    values = clips.astype(np.float32)
    across = np.linspace(0, 1, right - left + 2)[1:-1, None]
    down = np.linspace(0, 1, bottom - top + 2)[1:-1, None, None]
    lines = values[..., top:bottom, left - 1, None, :] * (1 - across) + values[..., top:bottom, right, None, :] * across
    falls = values[..., top - 1, None, left:right, :] * (1 - down) + values[..., bottom, None, left:right, :] * down
    filled = clips.copy()
    filled[..., top:bottom, left:right, :] = ((lines + falls) / 2).round().astype(np.uint8)
    return filled


def _moving(
    pipeline: TextToVideoPipeline, tier: int, count: int, ledger: Ledger
) -> tuple[list[SpriteClip], list[Centres]]:
    """Test clips in which something moves, and whose objects are seen wherever a centre is asked for; their tracks.

    One object is seen in every frame; of two, one may be behind the other in between.
    """
    world = SpriteWorld("test", tier, **canvas(pipeline))
    judged = ledger.map(_tracked, ((world.sample(index),) for index in range(2 * count)))
    found = list(islice((pair for pair in judged if pair is not None), count))
    return [clip for clip, _ in found], [track for _, track in found]


def _tracked(clip: SpriteClip) -> tuple[SpriteClip, Centres] | None:
    whole, last = centres_of(clip.frames, clip.key), len(clip.frames) - 1
    asked = slice(None) if whole.shape[1] == 1 else [0, *(given - 1 for given in GIVEN), last // 2, last]
    track = whole[asked]
    shown = clip.masks.any(axis=(1, 2)).all() and np.isfinite(track).all()
    return (clip, whole) if shown and np.ptp(track, axis=0).max() > 2 else None


def _make(
    pipeline: TextToVideoPipeline,
    clips: Sequence[SpriteClip],
    conditions: Sequence[list[VideoCondition]],
    budget: Budget,
    seed: int,
    ledger: Ledger,
    name: str,
    jobs: Callable[[Clips, range], Iterable[Job]],
    measure: Callable[..., Row],
    **settings: Any,
) -> list[Row]:
    """Make every clip from what is known of it, and measure it; `jobs` is given the clips made and their numbers."""
    predict = MaskedPredictionPipeline(**pipeline.components)
    predict.set_progress_bar_config(disable=True)

    def make(part: range) -> Iterable[Job]:
        made = predict(
            conditions=[conditions[i] for i in part],
            prompt=[full_prompt(clips[i]) for i in part],
            generator=generators(seed, part),
            keep_known_pixels=False,
            output_type="uint8",
            **settings,
        ).frames
        return jobs(made, part)

    return ledger.rows(name, len(clips), budget.batch, make, measure)


def _placed(clip: Clips, key: AnswerKey, frame: int) -> Row:
    return {"centre": _listed(centres_of(clip, key)[frame])}


def _listed(centres: Centres) -> list[float] | None:
    """[objects, 2] as a ledger keeps it; None where one was not found."""
    return [float(value) for value in centres.ravel()] if np.isfinite(centres).all() else None


def _centre(row: Row, like: Centres) -> Centres:
    kept = row["centre"]
    return np.full_like(like, np.nan) if kept is None else np.asarray(kept, np.float32).reshape(like.shape)


def _extrapolated(track: Centres, frame: int) -> Centres:
    """Where a centre that goes on as it did would be."""
    pace = (track[-1] - track[0]) / (len(track) - 1)
    return np.asarray(track[-1] + pace * (frame - len(track) + 1), np.float32)


def _blended(frames: Clips) -> Clips:
    """From the first frame to the last by mixing the two."""
    share = np.linspace(0, 1, len(frames), dtype=np.float32)[:, None, None, None]
    return (frames[0] * (1 - share) + frames[-1] * share).round().astype(np.uint8)


def _errors(found: Sequence[Centres], true: Sequence[Centres], clips: Sequence[SpriteClip]) -> dict[str, float]:
    """Mean distance in pixels of a short side of 64, with its interval; of two objects that of both."""
    unit = min(clips[0].frames.shape[1:3]) / UNIT
    distances = np.linalg.norm(np.stack(found) - np.stack(true), axis=-1) / unit
    values = np.where(np.isfinite(distances), np.minimum(distances, MISSED), MISSED).mean(axis=1).tolist()
    interval = bootstrap_interval(values)
    return {"mean": interval.mean, "low": interval.low, "high": interval.high, "count": len(values)}
