"""What `vgen evaluate` measures on SpriteWorld, one function a row of the table in SPRITES.

Pixels are never pasted back: every score is of what the model made. Each returns plain numbers; a rate is a dict
{"mean", "low", "high", "count"} with its 95 % interval. What a clip cost to make is kept in a ledger, clip by clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from vgen.engine.speed.host_copy import to_bytes
from vgen.pipelines import ImageToVideoPipeline, TextToVideoPipeline
from vgen.training.data.sprites.captions import caption
from vgen.training.data.sprites.keys import AnswerKey
from vgen.training.data.sprites.splits import stream
from vgen.training.data.sprites.world import SpriteClip, SpriteWorld, answer_prompts
from vgen.training.evaluate.intervals import psnr_interval, share_interval
from vgen.training.evaluate.resumable import Job, Ledger, Row
from vgen.training.judge.judge import Score, score
from vgen.training.losses.pixels import ssim

Clips = NDArray[np.uint8]
Rates = dict[str, dict[str, float]]
FLOORS = ("shuffled_captions", "still_video")
_PARTS = ("presence", "colour", "shape", "motion", "relation", "joint")


class Budget(NamedTuple):
    """How much is measured: clips for the VAE, prompts a split, seeds a prompt, clips a batch."""

    clips: int
    prompts: int
    seeds: int
    batch: int = 16


def row_of(judged: Score) -> Row:
    """A score as a ledger keeps it; one object has no relation."""
    passed = {part: bool(getattr(judged, part)) for part in _PARTS if getattr(judged, part) is not None}
    return {**passed, "acceleration": float(judged.acceleration), "flicker": float(judged.flicker)}


def judged(clip: Clips, key: AnswerKey) -> Row:
    """What the judge says of a clip, as a ledger keeps it."""
    return row_of(score(clip, key))


def rates(rows: Sequence[Row], repeats: int = 1) -> Rates:
    """Share of clips that pass, for each part of a score, with its interval; `repeats` clips of each prompt."""
    return {part: share([row[part] for row in rows], repeats) for part in _PARTS if all(part in row for row in rows)}


def share(passed: Sequence[bool], repeats: int = 1) -> dict[str, float]:
    """A share as the report holds it."""
    interval = share_interval(passed, repeats)
    return {"mean": interval.mean, "low": interval.low, "high": interval.high, "count": len(passed)}


def decibels(errors: Sequence[float], weights: Sequence[float] | None = None) -> dict[str, float]:
    """PSNR over all pixels of clips together, from each clip's mean squared error, as the report holds it."""
    interval = psnr_interval(errors, weights)
    return {"mean": interval.mean, "low": interval.low, "high": interval.high, "count": len(errors)}


def with_intervals(measured: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Means by name, and beside them their intervals, [low, high] by the same names."""
    means: dict[str, Any] = {name: found["mean"] for name, found in measured.items()}
    return {**means, "intervals": {name: [found["low"], found["high"]] for name, found in measured.items()}}


def vae_scores(pipeline: TextToVideoPipeline, tier: int, budget: Budget, ledger: Ledger) -> dict[str, Any]:
    """Reconstruction of test clips: PSNR, SSIM, and what the judge reads afterwards: the ceiling of every score."""
    world = SpriteWorld("test", tier, **canvas(pipeline))

    def make(part: range) -> list[Job]:
        clips = [world.sample(index) for index in part]
        return list(zip(clips, reconstruct(pipeline, np.stack([clip.frames for clip in clips])), strict=True))

    rows = ledger.rows(f"VAE, tier {tier}", budget.clips, budget.batch, make, _restored)
    pixels = {
        "psnr": decibels([row["error"] for row in rows]),
        "object_psnr": decibels([row["object_error"] for row in rows], [row["object_pixels"] for row in rows]),
        "first_frame_psnr": decibels([row["first_error"] for row in rows]),
    }
    return {
        **with_intervals(pixels),
        "ssim": float(np.mean([row["ssim"] for row in rows])),
        "judged": rates(rows),
        "judged_originals": rates([row["original"] for row in rows]),
    }


def _restored(clip: SpriteClip, made: Clips) -> Row:
    errors = squared_error(clip.frames, made)
    inside = errors[clip.masks]
    return {
        "error": float(errors.mean()),
        "object_error": float(inside.mean()) if inside.size else 0.0,
        "object_pixels": int(clip.masks.sum()),
        "first_error": float(errors[0].mean()),
        "ssim": ssim(torch.from_numpy(clip.frames[None]), torch.from_numpy(made[None])),
        "original": judged(clip.frames, clip.key),
        **judged(made, clip.key),
    }


def text_to_video_scores(
    pipeline: TextToVideoPipeline,
    tier: int,
    triples: str,
    budget: Budget,
    seed: int,
    ledger: Ledger,
    *,
    split: str = "test",
    name: str = "text to video",
    **settings: Any,
) -> dict[str, Any]:
    """Clips from prompts of a split, judged by what the prompts say; floors beside them.

    Args:
        pipeline: the model.
        tier: of SpriteWorld.
        triples: "seen" or "withheld".
        budget: how many.
        seed: of the first clip; the clips after it count up.
        ledger: keeps what is measured.
        split: of SpriteWorld.
        name: of the measure in the ledger.
        **settings: handed to the pipeline (guidance_scale, num_inference_steps ...).
    """
    asked = answer_prompts(split, tier, budget.prompts, triples)
    jobs = asked * budget.seeds
    others = [key for _, key in asked[len(asked) // 2 :] + asked[: len(asked) // 2]] * budget.seeds

    def make(part: range) -> list[Job]:
        prompts = [jobs[number][0] for number in part]
        made = pipeline(prompts, generator=generators(seed, part), output_type="uint8", **settings).frames
        return [(clip, jobs[number][1], others[number]) for clip, number in zip(made, part, strict=True)]

    rows = ledger.rows(f"{name}, tier {tier}, {triples}", len(jobs), budget.batch, make, _obeyed)
    return {
        **rates(rows, budget.seeds),
        "acceleration": float(np.mean([row["acceleration"] for row in rows])),
        "flicker": float(np.mean([row["flicker"] for row in rows])),
        "by_motion": _by_motion(rows, [key for _, key in jobs]),
        "floors": {floor: share([row[floor] for row in rows], budget.seeds) for floor in FLOORS},
    }


def _obeyed(clip: Clips, key: AnswerKey, other: AnswerKey) -> Row:
    still = np.repeat(clip[:1], len(clip), axis=0)
    return {
        **judged(clip, key),
        "shuffled_captions": bool(score(clip, other).joint),
        "still_video": bool(score(still, key).joint),
    }


def image_to_video_scores(
    pipeline: TextToVideoPipeline, tier: int, budget: Budget, seed: int, ledger: Ledger, **settings: Any
) -> dict[str, Any]:
    """First frames of test clips animated by their captions: how well frame 0 is kept, whether the motion obeys."""
    animate = ImageToVideoPipeline(**pipeline.components)
    animate.set_progress_bar_config(disable=True)
    world = SpriteWorld("test", tier, **canvas(pipeline))
    # A first frame that shows nothing of the object (it appears later) says nothing about the motion.
    clips = [clip for clip in (world.sample(i) for i in range(budget.prompts)) if clip.masks[0].any()]
    jobs = clips * budget.seeds

    def make(part: range) -> list[Job]:
        chosen = [jobs[number] for number in part]
        firsts = np.stack([clip.frames[:1] for clip in chosen])
        images = torch.from_numpy(firsts[:, 0]).permute(0, 3, 1, 2).float() / 255
        made = animate(
            image=images, prompt=[full_prompt(clip) for clip in chosen], generator=generators(seed, part),
            output_type="uint8", keep_known_pixels=False, **settings,
        ).frames  # fmt: skip
        keys = [clip.key for clip in chosen]
        return list(zip(made, firsts[:, 0], reconstruct(pipeline, firsts)[:, 0], keys, strict=True))

    rows = ledger.rows(f"image to video, tier {tier}", len(jobs), budget.batch, make, _animated)
    pixels = {
        "first_frame_psnr": decibels([row["error"] for row in rows]),
        "vae_first_frame_psnr": decibels([row["vae_error"] for row in rows]),
    }
    return {**with_intervals(pixels), **rates(rows, budget.seeds)}


def _animated(made: Clips, first: Clips, coded: Clips, key: AnswerKey) -> Row:
    errors = {"error": squared_error(first, made[0]), "vae_error": squared_error(first, coded)}
    return {**judged(made, key), **{name: float(error.mean()) for name, error in errors.items()}}


def image_scores(
    pipeline: TextToVideoPipeline, tier: int, budget: Budget, seed: int, ledger: Ledger, **settings: Any
) -> dict[str, Any]:
    """Pictures (one frame) from prompts without motion: colour and shape."""
    world = SpriteWorld("test", tier, num_frames=1)
    keys = [world.scene(index).key for index in range(budget.prompts)]

    def make(part: range) -> list[Job]:
        places = [number % len(keys) for number in part]
        prompts = [caption(keys[i], stream("prompt", "test", tier, i), require=("colour", "shape")) for i in places]
        given = {**settings, "num_frames": 1, "generator": generators(seed, part)}
        made = pipeline(prompts, output_type="uint8", **given).frames
        return [(clip, keys[i]) for clip, i in zip(made, places, strict=True)]

    rows = ledger.rows(f"pictures, tier {tier}", len(keys) * budget.seeds, budget.batch, make, judged)
    return rates(rows, budget.seeds)


def squared_error(first: Clips, second: Clips) -> NDArray[np.float64]:
    """[..., 3] against [..., 3] -> [...], mean over the colours, as 8-bit images."""
    return np.square(first.astype(np.float64) - second.astype(np.float64)).mean(-1)


def generators(seed: int, numbers: range) -> list[torch.Generator]:
    """One a clip, by its number: its noise does not depend on the clips beside it."""
    return [torch.Generator().manual_seed(seed + number) for number in numbers]


def full_prompt(clip: SpriteClip) -> str:
    """A caption that says colour, shape and motion."""
    rng = stream("prompt", clip.split, clip.tier, clip.index)
    return caption(clip.key, rng, require=("colour", "shape", "motion"))


def _by_motion(rows: Sequence[Row], keys: Sequence[AnswerKey]) -> dict[str, float]:
    groups: dict[str, list[float]] = {}
    for row, key in zip(rows, keys, strict=True):
        groups.setdefault(str(key.relation or key.objects[0].motion), []).append(float(row["joint"]))
    return {motion: float(np.mean(values)) for motion, values in sorted(groups.items())}


def canvas(pipeline: TextToVideoPipeline) -> dict[str, Any]:
    """Length, size and rate of the model's clips."""
    defaults = pipeline.config.defaults
    return {name: defaults[name] for name in ("num_frames", "height", "width", "frame_rate") if name in defaults}


@torch.no_grad()
def reconstruct(pipeline: TextToVideoPipeline, clips: Clips) -> Clips:
    """Clips through the VAE."""
    vae = pipeline.vae
    video = torch.from_numpy(clips).permute(0, 4, 1, 2, 3).to(vae.device, torch.float32) / 127.5 - 1
    timestep = torch.zeros(len(video), device=vae.device) if vae.config.timestep_conditioning else None
    restored = vae.decode(vae.encode(video.to(vae.dtype)).latent_dist.mode(), timestep).sample
    return to_bytes(restored).cpu().numpy()


def chunks(items: Any, size: int) -> list[Any]:
    """Pieces of at most `size`."""
    return [items[begin : begin + size] for begin in range(0, len(items), size)]
