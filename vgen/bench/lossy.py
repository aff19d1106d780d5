"""Lossy arms: ours with one way of making another clip faster, and how far that clip is from the exact one."""

from __future__ import annotations

import math
from importlib.resources import files
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from vgen.bench.scenarios import ARCHITECTURES, Scenario
from vgen.diffusion.tokens import pack
from vgen.engine.lossy.magnitudes import Magnitudes
from vgen.engine.lossy.quantize import quantize
from vgen.engine.lossy.step_cache import measure_magnitudes
from vgen.errors import RequestError
from vgen.request.lossy import QUANTIZATIONS, STEP_CACHES, read_interval, read_step_cache

LOSSY: Final = (*QUANTIZATIONS, *STEP_CACHES, "guidance-interval", "bfloat16")
"""Ways that change the result; never in a default, always in a table of their own with their error."""
_INTERVAL = "0.5,1"


def is_lossy(way: str) -> bool:
    """Whether `way` names one, perhaps with a number: first-block:0.1, guidance-interval:0.5,1."""
    return way.partition(":")[0] in LOSSY


def settings_of(way: str) -> dict[str, Any]:
    """What a way adds to the settings of every call.

    Raises:
        RequestError: its number is out of its range.
    """
    name, _, number = way.partition(":")
    if name == "guidance-interval":
        return {"guidance_interval": read_interval(number or _INTERVAL)}
    if name in STEP_CACHES:
        return {"step_cache": read_step_cache(way)}
    if number:
        raise RequestError(f"against='lossy:{way}' takes no number: use lossy:{name}.")
    return {}


def apply(way: str, transformer: Any) -> None:
    """What a way does to a transformer that nothing else uses."""
    if way in QUANTIZATIONS:
        quantize(transformer, way)
    elif way == "bfloat16":
        transformer.to(torch.bfloat16)


def magnitudes_for(way: str, pipeline: Any, scenario: Scenario, text: dict[str, Any]) -> Magnitudes | None:
    """Magnitudes for MagCache, measured on one clip of a seed that no error is taken at."""
    if way.partition(":")[0] != "magcache":
        return None
    prompts: list[Any] = [text["prompt"][0]] if "prompt" in text else [None]
    other = {name: value for name, value in text.items() if name not in ("prompt", "negative_prompt")}
    return measure_magnitudes(
        pipeline,
        prompts,
        seed=1000,
        height=scenario.height,
        width=scenario.width,
        num_frames=scenario.num_frames,
        frame_rate=scenario.frame_rate,
        num_inference_steps=scenario.num_inference_steps,
        guidance_scale=scenario.guidance_scale,
        max_sequence_length=scenario.text_tokens,
        **other,
    )


def prompts_of(scenario: Scenario) -> list[str] | None:
    """Prompts that a trained model is asked for; None where the weights are random, and text means nothing."""
    if scenario.config in ARCHITECTURES:
        return None
    return files("vgen.assets").joinpath("prompts/eight.txt").read_text(encoding="utf-8").splitlines()


class Reference(NamedTuple):
    """What lossy arms are held against: see `reference_of`."""

    latents: Tensor
    pixels: Tensor
    other_seed: float


def reference_of(exact: Any) -> Reference:
    """The exact clips: with a trained model eight of eight prompts, else one of the scenario's random text.

    Args:
        exact: the exact arm.
    Returns:
        Their latents and pixels, and how far clips of another noise are from them.
    """
    latents, other = exact.clips(0), exact.clips(500)
    return Reference(latents, exact.decoded(latents), _relative(other, latents))


def error_of(reference: Reference, arm: Any) -> dict[str, float]:
    """How far a lossy arm's clips are from the exact ones of the same prompts and noise.

    Args:
        reference: of the exact arm.
        arm: the lossy one.
    Returns:
        `relative_rms`: root mean square of the latents' difference over that of the exact latents. `largest`: the
        largest difference. `psnr`: of the decoded pixels, decibels (infinite where they are equal). `other_seed`:
        `relative_rms` of another noise, what "another clip altogether" comes to. `clips`: how many.
    """
    latents = arm.clips(0)
    mean = float((arm.decoded(latents) - reference.pixels).square().mean())
    return {
        "relative_rms": _relative(latents, reference.latents),
        "largest": float((latents - reference.latents).abs().max()),
        "psnr": math.inf if mean == 0 else -10 * math.log10(mean),
        "other_seed": reference.other_seed,
        "clips": float(len(latents)),
    }


def _relative(latents: Tensor, exact: Tensor) -> float:
    return float((latents - exact).square().mean().sqrt() / exact.square().mean().sqrt())


def noise_tokens(scenario: Scenario, strides: Any, channels: int, patch: int, seed: int, count: int) -> Tensor:
    """[count, N, C] of `count` generators that count up from `seed`."""
    latent = scenario.shape.latent(strides)
    drawn = [torch.randn(1, channels, *latent, generator=torch.Generator().manual_seed(seed + i)) for i in range(count)]
    return pack(torch.cat(drawn), patch)
