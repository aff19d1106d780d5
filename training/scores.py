"""What `vgen evaluate` measures on SpriteWorld, one function a row of the table in SPRITES.

Pixels are never pasted back: every score is of what the model made. Each returns plain numbers; a rate is a dict
{"mean", "low", "high", "count"} with its bootstrap interval.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from vgen.pipelines import ImageToVideoPipeline, TextToVideoPipeline
from vgen.training.data.sprites.captions import caption
from vgen.training.data.sprites.keys import AnswerKey
from vgen.training.data.sprites.splits import stream
from vgen.training.data.sprites.world import SpriteClip, SpriteWorld, answer_prompts
from vgen.training.judge import Score, score
from vgen.training.losses.pixels import psnr, ssim
from vgen.training.statistics import bootstrap_interval

Clips = NDArray[np.uint8]
Rates = dict[str, dict[str, float]]
_PARTS = ("presence", "colour", "shape", "motion", "joint")


class Budget(NamedTuple):
    """How much is measured: clips for the VAE, prompts a split, seeds a prompt, clips a batch."""

    clips: int
    prompts: int
    seeds: int
    batch: int = 16


class Progress(NamedTuple):
    """Told after every batch: what is running, and how many clips were done."""

    advance: Callable[[str, int], None]


def rates(scores: Sequence[Score]) -> Rates:
    """Share of clips that pass, for each part of a score, with bootstrap intervals."""
    found = {}
    for part in _PARTS:
        values = [float(getattr(item, part)) for item in scores]
        interval = bootstrap_interval(values)
        found[part] = {"mean": interval.mean, "low": interval.low, "high": interval.high, "count": len(values)}
    return found


def vae_scores(pipeline: TextToVideoPipeline, tier: int, budget: Budget, progress: Progress) -> dict[str, Any]:
    """Reconstruction of test clips: PSNR, SSIM, and what the judge reads afterwards: the ceiling of every score."""
    clips = _clips(pipeline, "test", tier, budget.clips)
    originals = np.stack([clip.frames for clip in clips])
    masks = torch.from_numpy(np.stack([clip.masks for clip in clips]))
    restored = np.concatenate(
        [reconstruct(pipeline, part, progress) for part in chunks(originals, budget.batch)], axis=0
    )
    first, second = torch.from_numpy(originals), torch.from_numpy(restored)
    return {
        "psnr": psnr(first, second),
        "object_psnr": psnr(first, second, masks),
        "ssim": ssim(first, second),
        "first_frame_psnr": psnr(first[:, :1], second[:, :1]),
        "judged": rates([score(made, clip.key) for made, clip in zip(restored, clips, strict=True)]),
        "judged_originals": rates([score(clip.frames, clip.key) for clip in clips]),
    }


def text_to_video_scores(
    pipeline: TextToVideoPipeline,
    tier: int,
    triples: str,
    budget: Budget,
    seed: int,
    progress: Progress,
    **settings: Any,
) -> dict[str, Any]:
    """Clips from prompts of the test split, judged by what the prompts say; floors beside them.

    Args:
        pipeline: the model.
        tier: 1 or 2.
        triples: "seen" or "withheld".
        budget: how many.
        seed: of the first clip; the clips after it count up.
        progress: told after every batch.
        **settings: handed to the pipeline (guidance_scale, num_inference_steps ...).
    """
    asked = answer_prompts("test", tier, budget.prompts, triples)
    jobs = [(prompt, key, seed + repeat * len(asked) + i) for repeat in range(budget.seeds)
            for i, (prompt, key) in enumerate(asked)]  # fmt: skip
    made: list[Clips] = []
    for part in chunks(jobs, budget.batch):
        generators = [torch.Generator().manual_seed(number) for _, _, number in part]
        frames = pipeline([prompt for prompt, _, _ in part], generator=generators, output_type="np", **settings).frames
        made.extend(to_uint8(frames))
        progress.advance(f"text to video, tier {tier}, {triples}", len(part))
    keys = [key for _, key, _ in jobs]
    judged = [score(clip, key) for clip, key in zip(made, keys, strict=True)]
    shifted = keys[len(keys) // 2 :] + keys[: len(keys) // 2]
    still = [np.repeat(clip[:1], len(clip), axis=0) for clip in made]
    return {
        **rates(judged),
        "acceleration": float(np.mean([item.acceleration for item in judged])),
        "flicker": float(np.mean([item.flicker for item in judged])),
        "by_motion": _by_motion(judged, keys),
        "floors": {
            "shuffled_captions": rates([score(clip, key) for clip, key in zip(made, shifted, strict=True)])["joint"],
            "still_video": rates([score(clip, key) for clip, key in zip(still, keys, strict=True)])["joint"],
        },
    }


def image_to_video_scores(
    pipeline: TextToVideoPipeline, tier: int, budget: Budget, seed: int, progress: Progress, **settings: Any
) -> dict[str, Any]:
    """First frames of test clips animated by their captions: how well frame 0 is kept, whether the motion obeys."""
    animate = ImageToVideoPipeline(**pipeline.components)
    animate.set_progress_bar_config(disable=True)
    world = SpriteWorld("test", tier, **canvas(pipeline))
    # A first frame that shows nothing of the object (it appears later) says nothing about the motion.
    clips = [clip for clip in (world.sample(i) for i in range(budget.prompts)) if clip.masks[0].any()]
    made: list[Clips] = []
    for begin, part in enumerate(chunks(clips, budget.batch)):
        generators = [torch.Generator().manual_seed(seed + begin * budget.batch + i) for i in range(len(part))]
        prompts = [full_prompt(clip) for clip in part]
        images = torch.from_numpy(np.stack([clip.frames[0] for clip in part])).permute(0, 3, 1, 2).float() / 255
        frames = animate(
            image=images, prompt=prompts, generator=generators, output_type="np", keep_known_pixels=False, **settings
        ).frames
        made.extend(to_uint8(frames))
        progress.advance(f"image to video, tier {tier}", len(part))
    firsts = np.stack([clip.frames[:1] for clip in clips])
    restored = np.concatenate([reconstruct(pipeline, part) for part in chunks(firsts, budget.batch)])
    given = torch.from_numpy(firsts)
    return {
        "first_frame_psnr": psnr(given, torch.from_numpy(np.stack(made)[:, :1])),
        "vae_first_frame_psnr": psnr(given, torch.from_numpy(restored)),
        **rates([score(clip, item.key) for clip, item in zip(made, clips, strict=True)]),
    }


def image_scores(
    pipeline: TextToVideoPipeline, tier: int, budget: Budget, seed: int, progress: Progress, **settings: Any
) -> dict[str, Any]:
    """Pictures (one frame) from prompts without motion: colour and shape."""
    world = SpriteWorld("test", tier, num_frames=1)
    keys = [world.scene(index).key for index in range(budget.prompts)]
    made: list[Clips] = []
    for begin in range(0, len(keys), budget.batch):
        part = range(begin, min(begin + budget.batch, len(keys)))
        prompts = [caption(keys[i], stream("prompt", "test", tier, i), require=("colour", "shape")) for i in part]
        generators = [torch.Generator().manual_seed(seed + i) for i in part]
        made.extend(
            to_uint8(pipeline(prompts, num_frames=1, generator=generators, output_type="np", **settings).frames)
        )
        progress.advance(f"pictures, tier {tier}", len(part))
    return rates([score(clip, key) for clip, key in zip(made, keys, strict=True)])


def to_uint8(frames: NDArray[np.floating[Any]]) -> Clips:
    """[..., 3] in [0, 1] -> uint8, rounded."""
    return (np.asarray(frames) * 255.0).round().clip(0, 255).astype(np.uint8)


def full_prompt(clip: SpriteClip) -> str:
    """A caption that says colour, shape and motion."""
    rng = stream("prompt", clip.split, clip.tier, clip.index)
    return caption(clip.key, rng, require=("colour", "shape", "motion"))


def _by_motion(judged: Sequence[Score], keys: Sequence[AnswerKey]) -> dict[str, float]:
    groups: dict[str, list[float]] = {}
    for item, key in zip(judged, keys, strict=True):
        groups.setdefault(str(key.objects[0].motion), []).append(float(item.joint))
    return {motion: float(np.mean(values)) for motion, values in sorted(groups.items())}


def canvas(pipeline: TextToVideoPipeline) -> dict[str, Any]:
    """Length, size and rate of the model's clips."""
    defaults = pipeline.config.defaults
    return {name: defaults[name] for name in ("num_frames", "height", "width", "frame_rate") if name in defaults}


def _clips(pipeline: TextToVideoPipeline, split: str, tier: int, count: int) -> list[SpriteClip]:
    world = SpriteWorld(split, tier, **canvas(pipeline))
    return [world.sample(index) for index in range(count)]


@torch.no_grad()
def reconstruct(pipeline: TextToVideoPipeline, clips: Clips, progress: Progress | None = None) -> Clips:
    """Clips through the VAE."""
    vae = pipeline.vae
    video = torch.from_numpy(clips).permute(0, 4, 1, 2, 3).to(vae.device, torch.float32) / 127.5 - 1
    timestep = torch.zeros(len(video), device=vae.device) if vae.config.timestep_conditioning else None
    restored = vae.decode(vae.encode(video.to(vae.dtype)).latent_dist.mode(), timestep).sample
    if progress is not None:
        progress.advance("VAE", len(clips))
    return to_uint8((restored.float().permute(0, 2, 3, 4, 1).cpu().numpy() + 1) / 2)


def chunks(items: Any, size: int) -> list[Any]:
    """Pieces of at most `size`."""
    return [items[begin : begin + size] for begin in range(0, len(items), size)]
