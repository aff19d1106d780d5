"""Scores of the tasks whose clip is known in part: prediction, interpolation, completion; each with its baselines.

Pixels are never pasted back. Centres are the judge's, in made clips and in real ones alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vgen.training.data.sprites.keys import AnswerKey
from vgen.training.data.sprites.world import SpriteClip
from vgen.training.evaluate.intervals import as_score, bootstrap_interval, decibels, with_intervals
from vgen.training.evaluate.lines import BELOW_VAE, Line, decibel_line, error_line, say_aim
from vgen.training.evaluate.measure import Measure, Scores, Series, TierScores, per_prompt
from vgen.training.evaluate.model import Centres, Clips, ScoredModel, full_prompt
from vgen.training.evaluate.resumable import Job, Row
from vgen.training.evaluate.scores import squared_error
from vgen.training.judge.judge import centres_of

UNIT: Final = 64  # errors are in pixels of a short side of 64
MISSED: Final = 32.0  # error of a clip in whose frame nothing is found
PREDICTION_AIM: Final = 2.0  # pixels of UNIT
INTERPOLATION_AIM: Final = 1.5  # pixels of UNIT


def _placed(clip: Clips, key: AnswerKey, frame: int) -> Row:
    """Where the objects are in a frame; None where one was not found."""
    centres = centres_of(clip, key)[frame]
    return {"centre": [float(value) for value in centres.ravel()] if np.isfinite(centres).all() else None}


def _centres(rows: Sequence[Row], like: Sequence[Centres]) -> list[Centres]:
    """What `_placed` found, each [objects, 2], NaN where nothing."""
    places = (row["centre"] or np.full(true.size, np.nan) for row, true in zip(rows, like, strict=True))
    return [np.asarray(place, np.float32).reshape(true.shape) for place, true in zip(places, like, strict=True)]


def _predictions(model: ScoredModel, given: int) -> Series:
    from vgen.pipelines import VideoCondition

    clips, real = model.moving
    true = [track[-1] for track in real]

    def make(numbers: range) -> list[Job]:
        chosen = [clips[number] for number in numbers]
        conditions = [[VideoCondition(clip.frames[:given])] for clip in chosen]
        made = model.from_known(conditions, [full_prompt(clip) for clip in chosen], numbers)
        return [(frames, clip.key, -1) for frames, clip in zip(made, chosen, strict=True)]

    def scores(rows: list[Row]) -> Scores:
        return {
            "error": _errors(_centres(rows, true), true, clips),
            "nearest_copy": _errors([track[given - 1] for track in real], true, clips),
            "constant_velocity": _errors([_extrapolated(track[:given], len(track) - 1) for track in real], true, clips),
        }

    return Series(len(clips), make, scores)


def _prediction_lines(given: int, scores: Scores, tier: TierScores) -> Iterator[Line]:
    yield error_line(f"prediction, {given} frames given: centre of the last", scores, PREDICTION_AIM)


def prediction(given: int) -> Measure:
    """Error of the centre in the last frame, of moving clips of which the first `given` frames are given."""
    return Measure(
        task="prediction", part=f"given_{given}", name=f"prediction of {given}, tier {{tier}}",
        make=partial(_predictions, given=given), measure=_placed, count=per_prompt,
        lines=partial(_prediction_lines, given),
    )  # fmt: skip


def _interpolations(model: ScoredModel) -> Series:
    from vgen.pipelines import VideoCondition

    clips, real = model.moving
    middle = len(clips[0].frames) // 2
    true = [track[middle] for track in real]

    def make(numbers: range) -> list[Job]:
        chosen = [clips[number] for number in numbers]
        ends = [[VideoCondition(c.frames[0]), VideoCondition(c.frames[-1], frame_index=-1)] for c in chosen]
        made = model.from_known(ends, [full_prompt(clip) for clip in chosen], numbers)
        return [(frames, clip.key, middle) for frames, clip in zip(made, chosen, strict=True)]

    def scores(rows: list[Row]) -> Scores:
        blends = [t[middle] for t in model.kept.map(centres_of, ((_blended(c.frames), c.key) for c in clips))]
        return {
            "error": _errors(_centres(rows, true), true, clips),
            "nearest_copy": _errors([track[0] for track in real], true, clips),
            "linear_blend": _errors(blends, true, clips),
            "constant_velocity": _errors([(track[0] + track[-1]) / 2 for track in real], true, clips),
        }

    return Series(len(clips), make, scores)


def _interpolation_lines(scores: Scores, tier: TierScores) -> Iterator[Line]:
    better = scores["error"]["mean"] < scores["linear_blend"]["mean"]
    name = "interpolation: centre of the middle frame"
    yield error_line(name, scores, INTERPOLATION_AIM, better, "and below the blend")


INTERPOLATION: Final = Measure(
    task="interpolation", name="interpolation, tier {tier}", make=_interpolations, measure=_placed, count=per_prompt,
    cost=1.1, lines=_interpolation_lines,
)  # fmt: skip
"""Error of the centre in the middle frame, of moving clips of which first and last frame are given."""


def _completions(model: ScoredModel) -> Series:
    from vgen.pipelines import VideoCondition

    clips = model.test_clips()
    known = hidden_box(*clips[0].frames.shape[1:3])

    def make(numbers: range) -> Iterable[Job]:
        chosen = [clips[number] for number in numbers]
        conditions = [[VideoCondition(clip.frames, mask=known.astype(np.float32))] for clip in chosen]
        made = model.from_known(conditions, [full_prompt(clip) for clip in chosen], numbers)
        originals = np.stack([clip.frames for clip in chosen])
        return ((*pair, known) for pair in zip(originals, made, model.restored(originals), strict=True))

    def filled(fill: Callable[[Clips, NDArray[np.bool_]], Clips]) -> dict[str, float]:
        return decibels(list(model.kept.map(_filled, ((clip.frames, known, fill) for clip in clips))))

    def scores(rows: list[Row]) -> Scores:
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

    return Series(len(clips), make, scores)


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


def _completion_lines(box: Scores, tier: TierScores) -> Iterator[Line]:
    floors = f"nearest copy {box['nearest_copy']:.1f} dB, linear blend {box['linear_blend']:.1f} dB"
    beaten = box["psnr"] > max(box["nearest_copy"], box["linear_blend"])
    hidden = decibel_line("completion: PSNR of the hidden part", box, "psnr", None, f"VAE {box['vae']:.1f} dB", floors)
    yield hidden._replace(aim=say_aim(beaten, "above the floors"))
    vae = box["vae_known_psnr"]
    yield decibel_line("completion: PSNR of the known part", box, "known_psnr", vae - BELOW_VAE, f"VAE {vae:.1f} dB")


COMPLETION: Final = Measure(
    task="completion", name="completion, tier {tier}", make=_completions, measure=_completed, count=per_prompt,
    cost=1.1, lines=_completion_lines,
)  # fmt: skip
"""PSNR of a hidden box in the middle of every frame, half as wide and high, and of what is known."""


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


def _extrapolated(track: Centres, frame: int) -> Centres:
    """Where a centre would be that continues at the same velocity."""
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
    return as_score(bootstrap_interval(values), len(values))
