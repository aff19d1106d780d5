"""Scores of whole clips: of the VAE, and of clips made from text and from pictures.

Pixels are never pasted back: every score is of what the model made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vgen.training.data.sprites.captions import caption
from vgen.training.data.sprites.keys import AnswerKey
from vgen.training.data.sprites.splits import stream
from vgen.training.data.sprites.world import SpriteClip, answer_prompts
from vgen.training.evaluate.intervals import decibels, share, with_intervals
from vgen.training.evaluate.lines import BELOW_VAE, Line, decibel_line, percent, say_aim, share_line
from vgen.training.evaluate.measure import Measure, Scores, Series, TierScores, per_seed
from vgen.training.evaluate.model import Budget, Clips, ScoredModel, full_prompt
from vgen.training.evaluate.resumable import Job, Row
from vgen.training.judge.judge import score

FLOORS: Final = ("shuffled_captions", "still_video")
JOINT_AIMS: Final = {"tier 1": {"seen": 0.90, "withheld": 0.75}, "tier 2": {"seen": 0.80, "withheld": 0.60}}
VAE_AIMS: Final = {"psnr": 34.0, "object_psnr": 28.0, "ssim": 0.97, "judged": 0.99}
MOTION_AIM: Final = 0.85  # of animated pictures
PICTURES_AIM: Final = 0.90
_PARTS: Final = ("presence", "colour", "shape", "motion", "relation", "joint")


def judged(clip: Clips, key: AnswerKey) -> Row:
    """What the judge says of a clip; one object has no relation."""
    verdict = score(clip, key)
    passed = {part: bool(getattr(verdict, part)) for part in _PARTS if getattr(verdict, part) is not None}
    return {**passed, "acceleration": float(verdict.acceleration), "flicker": float(verdict.flicker)}


def rates(rows: Sequence[Row], repeats: int = 1) -> dict[str, dict[str, float]]:
    """Share of clips that pass, for each part of a score, with its interval; `repeats` clips of each prompt."""
    return {part: share([row[part] for row in rows], repeats) for part in _PARTS if all(part in row for row in rows)}


def squared_error(first: Clips, second: Clips) -> NDArray[np.float64]:
    """[..., 3] against [..., 3] -> [...], mean over the colours, as 8-bit images."""
    return np.square(first.astype(np.float64) - second.astype(np.float64)).mean(-1)


def _reconstructions(model: ScoredModel) -> Series:
    world = model.world()

    def make(numbers: range) -> list[Job]:
        clips = [world.sample(index) for index in numbers]
        return list(zip(clips, model.restored(np.stack([clip.frames for clip in clips])), strict=True))

    def scores(rows: list[Row]) -> Scores:
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

    return Series(model.budget.clips, make, scores)


def _restored(clip: SpriteClip, made: Clips) -> Row:
    import torch

    from vgen.training.losses.pixels import ssim

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


def _vae_lines(vae: Scores, tier: TierScores) -> Iterator[Line]:
    yield decibel_line("VAE: PSNR", vae, "psnr", VAE_AIMS["psnr"])
    yield decibel_line("VAE: PSNR on the objects' pixels", vae, "object_psnr", VAE_AIMS["object_psnr"])
    aim = say_aim(vae["ssim"] >= VAE_AIMS["ssim"], f"{VAE_AIMS['ssim']}")
    yield Line("VAE: SSIM", f"{vae['ssim']:.3f}", aim=aim)
    for part in ("colour", "shape", "joint"):
        ceiling = f"originals {percent(vae['judged_originals'][part])}"
        line = share_line(f"VAE: {part} judged afterwards", vae["judged"][part], VAE_AIMS["judged"], ceiling)
        yield line._replace(on_page=part != "joint")


VAE: Final = Measure(
    task="vae", name="VAE, tier {tier}", make=_reconstructions, measure=_restored, count=lambda budget: budget.clips,
    cost=0.1, lines=_vae_lines, basic=True,
)  # fmt: skip
"""Reconstruction of test clips: PSNR, SSIM, and what the judge reads afterwards: the ceiling of every score."""


def _from_prompts(model: ScoredModel, triples: str, split: str = "test") -> Series:
    budget = model.budget
    asked = answer_prompts(split, model.tier, budget.prompts, triples)
    jobs = asked * budget.seeds
    others = [key for _, key in asked[len(asked) // 2 :] + asked[: len(asked) // 2]] * budget.seeds

    def make(numbers: range) -> list[Job]:
        made = model.from_text([jobs[number][0] for number in numbers], numbers)
        return [(clip, jobs[number][1], others[number]) for clip, number in zip(made, numbers, strict=True)]

    def scores(rows: list[Row]) -> Scores:
        return {
            **rates(rows, budget.seeds),
            "acceleration": float(np.mean([row["acceleration"] for row in rows])),
            "flicker": float(np.mean([row["flicker"] for row in rows])),
            "by_motion": _by_motion(rows, [key for _, key in jobs]),
            "floors": {floor: share([row[floor] for row in rows], budget.seeds) for floor in FLOORS},
        }

    return Series(len(jobs), make, scores)


def _obeyed(clip: Clips, key: AnswerKey, other: AnswerKey) -> Row:
    still = np.repeat(clip[:1], len(clip), axis=0)
    return {
        **judged(clip, key),
        "shuffled_captions": bool(score(clip, other).joint),
        "still_video": bool(score(still, key).joint),
    }


def _by_motion(rows: Sequence[Row], keys: Sequence[AnswerKey]) -> dict[str, float]:
    """Joint share of every motion, or relation of two objects."""
    groups: dict[str, list[float]] = {}
    for row, key in zip(rows, keys, strict=True):
        groups.setdefault(str(key.relation or key.objects[0].motion), []).append(float(row["joint"]))
    return {motion: float(np.mean(values)) for motion, values in sorted(groups.items())}


def _text_lines(triples: str, scores: Scores, tier: TierScores) -> Iterator[Line]:
    ceilings = {part: f"VAE {percent(rate)}" for part, rate in tier.scores.get("vae", {}).get("judged", {}).items()}
    floors = {name.replace("_", " "): rate for name, rate in scores["floors"].items()}
    untrained = tier.scores.get("untrained")
    if untrained is not None:
        floors["untrained"] = untrained["joint"]
    said = ", ".join(f"{name} {percent(rate)}" for name, rate in floors.items())
    name, aim = f"text to video, {triples}", JOINT_AIMS.get(tier.name, {}).get(triples)
    yield share_line(f"{name}: joint", scores["joint"], aim, ceilings.get("joint", ""), said)
    for part in (part for part in _PARTS[:-1] if part in scores):
        floor = "" if untrained is None else f"untrained {percent(untrained[part])}"
        yield share_line(f"{name}: {part}", scores[part], None, ceilings.get(part, ""), floor)
    yield Line(f"{name}: track acceleration", f"{scores['acceleration']:.2f} px", on_page=False)


def text_to_video(triples: str) -> Measure:
    """Clips from prompts of the test split, judged by what the prompts say; `triples` is "seen" or "withheld"."""
    return Measure(
        task="text_to_video", part=triples, name=f"text to video, tier {{tier}}, {triples}",
        make=partial(_from_prompts, triples=triples), measure=_obeyed, lines=partial(_text_lines, triples), basic=True,
    )  # fmt: skip


def guidance_choice(scale: float) -> Measure:
    """Text to video on the validation split, from which the guidance scale is chosen."""
    return Measure(
        task="guidance", name=f"guidance {scale:g} on validation, tier {{tier}}, seen",
        make=partial(_from_prompts, triples="seen", split="validation"), measure=_obeyed,
    )  # fmt: skip


_UNTRAINED_PROMPTS: Final = 64


def _fewer(budget: Budget) -> Budget:
    return budget._replace(prompts=min(budget.prompts, _UNTRAINED_PROMPTS), seeds=1)


def _from_untrained(model: ScoredModel) -> Series:
    return _from_prompts(replace(model.untrained(), budget=_fewer(model.budget)), "seen")


UNTRAINED: Final = Measure(
    task="untrained", name="untrained, tier {tier}, seen", make=_from_untrained, measure=_obeyed,
    count=lambda budget: per_seed(_fewer(budget)), basic=True,
)  # fmt: skip
"""The floor of text to video: the same model with freshly drawn weights of its transformer."""


def _animations(model: ScoredModel) -> Series:
    # A first frame that shows nothing of the object (it appears later) says nothing about the motion.
    clips = [clip for clip in model.test_clips() if clip.masks[0].any()]
    jobs = clips * model.budget.seeds

    def make(numbers: range) -> list[Job]:
        chosen = [jobs[number] for number in numbers]
        firsts = np.stack([clip.frames[:1] for clip in chosen])
        made = model.from_images(firsts[:, 0], [full_prompt(clip) for clip in chosen], numbers)
        return list(zip(made, firsts[:, 0], model.restored(firsts)[:, 0], [c.key for c in chosen], strict=True))

    def scores(rows: list[Row]) -> Scores:
        pixels = {
            "first_frame_psnr": decibels([row["error"] for row in rows]),
            "vae_first_frame_psnr": decibels([row["vae_error"] for row in rows]),
        }
        return {**with_intervals(pixels), **rates(rows, model.budget.seeds)}

    return Series(len(jobs), make, scores)


def _animated(made: Clips, first: Clips, coded: Clips, key: AnswerKey) -> Row:
    errors = {"error": squared_error(first, made[0]), "vae_error": squared_error(first, coded)}
    return {**judged(made, key), **{name: float(error.mean()) for name, error in errors.items()}}


def _animated_lines(scores: Scores, tier: TierScores) -> Iterator[Line]:
    vae = scores["vae_first_frame_psnr"]
    name = "image to video: PSNR of frame 0"
    yield decibel_line(name, scores, "first_frame_psnr", vae - BELOW_VAE, f"VAE {vae:.1f} dB")
    yield share_line("image to video: motion", scores["motion"], MOTION_AIM)


IMAGE_TO_VIDEO: Final = Measure(
    task="image_to_video", name="image to video, tier {tier}", make=_animations, measure=_animated,
    lines=_animated_lines, basic=True,
)  # fmt: skip
"""First frames of test clips animated by their captions: how well frame 0 is kept, whether the motion obeys."""


def _pictures(model: ScoredModel) -> Series:
    world = model.world(num_frames=1)
    keys = [world.scene(index).key for index in range(model.budget.prompts)]

    def make(numbers: range) -> list[Job]:
        places = [number % len(keys) for number in numbers]
        draws = [stream("prompt", "test", model.tier, i) for i in places]
        prompts = [caption(keys[i], draw, require=("colour", "shape")) for i, draw in zip(places, draws, strict=True)]
        made = model.from_text(prompts, numbers, num_frames=1)
        return [(clip, keys[i]) for clip, i in zip(made, places, strict=True)]

    return Series(len(keys) * model.budget.seeds, make, lambda rows: rates(rows, model.budget.seeds))


def _picture_lines(scores: Scores, tier: TierScores) -> Iterator[Line]:
    return (share_line(f"pictures: {part}", scores[part], PICTURES_AIM) for part in ("colour", "shape"))


IMAGES: Final = Measure(
    task="images", name="pictures, tier {tier}", make=_pictures, measure=judged, cost=0.3, lines=_picture_lines,
    basic=True,
)  # fmt: skip
"""Pictures (one frame) from prompts without motion: colour and shape."""
