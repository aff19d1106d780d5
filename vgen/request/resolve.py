"""What a request leaves open, settled field by field from the model's defaults and the given video; without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vgen.errors import RequestError, ShapeError, bytes_text, counted
from vgen.request.settings import Settings
from vgen.request.steps import settle_steps
from vgen.types import SKIP_MODES, Strides, VideoShape

_WITH_SCHEDULES = {name for name, knob in Settings.knobs().items() if knob.has_schedule}

MAX_VIDEO_BYTES = 16e9
"""Most bytes that the finished pixels of one clip may take as float32; above it a request is refused."""


def check_amount(shape: VideoShape, strides: Strides) -> None:
    """Refuse a clip whose finished pixels alone would take absurd memory.

    Raises:
        ShapeError: with an estimate in GB and the largest square that fits.
    """
    needed = shape.num_frames * shape.height * shape.width * 3 * 4
    if needed <= MAX_VIDEO_BYTES:
        return
    side = int((MAX_VIDEO_BYTES / (shape.num_frames * 12)) ** 0.5) // strides.width * strides.width
    most = int(MAX_VIDEO_BYTES / (shape.height * shape.width * 12)) - 1
    frames = max(most, 0) // strides.temporal * strides.temporal + 1
    if side >= strides.width:
        remedy = f"at num_frames={shape.num_frames} use at most {side} x {side}"
    else:
        remedy = f"at {shape.width} x {shape.height} use at most num_frames={frames}"
    raise ShapeError(
        f"width={shape.width}, height={shape.height}, num_frames={shape.num_frames} needs about {bytes_text(needed)} "
        f"for its pixels alone; at most {bytes_text(MAX_VIDEO_BYTES)} are allowed: {remedy}."
    )


def frames_to_keep(asked: int | None, num_frames: int, stride: int, video_frames: int | None) -> int:
    """How many frames of the given video start the clip: whole latent frames, and fewer than all.

    Left out, it is the most that fit in the first half of the clip and that the video has.
    """
    most = (num_frames - 2) // stride * stride + 1 if num_frames > 1 else 0
    if video_frames is not None:
        most = min(most, (video_frames - 1) // stride * stride + 1)
    if most < 1:
        raise RequestError(f"num_frames={num_frames} leaves nothing to predict; use num_frames={stride + 1} or more.")
    if asked is None:
        return min(most, num_frames // 2 // stride * stride + 1)
    if asked <= most and (asked - 1) % stride == 0:
        return asked
    below = min(most, max(asked - 1, 0) // stride * stride + 1)
    nearest = f"{below} or {below + stride}" if below + stride <= most else f"{below}"
    have = f", the video has {video_frames}" if video_frames is not None else ""
    raise RequestError(
        f"keep_frames={asked} does not fit: keep_frames - 1 must divide by {stride}, and it must be from 1 to {most} "
        f"(the clip has num_frames={num_frames}{have}); use {nearest}."
    )


def frames_to_restyle(asked: int | None, default: int | None, stride: int, video_frames: int) -> int:
    """How many frames of the given video are replaced: as many as the model makes by default and the video has."""
    most = (video_frames - 1) // stride * stride + 1
    if asked is not None and asked > video_frames:
        raise RequestError(
            f"num_frames={asked} and the video has {counted(video_frames, 'frame')}: use {most} or fewer."
        )
    return asked if asked is not None else min(most, default or most)


def check_lists(settings: Settings, num_steps: int) -> None:
    """Refuse lists of a guidance that do not have one value per step, or per level of `guidance_sigmas`.

    Raises:
        RequestError: names both numbers.
    """
    levels = settings.guidance_sigmas
    count, each = (num_steps, "step") if levels is None else (len(levels), "level")
    for name in ("guidance_scale", "guidance_rescale", "stg_scale", "stg_blocks"):
        value = getattr(settings, name)
        listed = isinstance(value, tuple) and (name != "stg_blocks" or any(isinstance(one, tuple) for one in value))
        if listed and len(value) != count:
            raise RequestError(
                f"{name} holds {counted(len(value), 'value')} for {counted(count, each)}: give one for each {each}, or "
                "one for all."
            )


def preset_settings(name: str | None, defaults: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a preset says for a model: settings that go before its defaults.

    Args:
        name: of the preset; None: none.
        defaults: of the model; `presets` holds its settings by name.
    Raises:
        RequestError: the model has no preset of that name.
    """
    if name is None:
        return {}
    known = defaults.get("presets") or {}
    if not isinstance(name, str) or name not in known:
        have = f"it has {', '.join(sorted(known))}." if known else "it has none: leave preset out."
        raise RequestError(f"preset={name!r:.80} is not one of this model: {have}")
    return dict(known[name])


def check_guidance(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Refuse what a distilled model has no use for: it was made for one guidance, which its weights hold already.

    Args:
        given: the caller's guidance_scale, stg_scale, cfg_star, guidance, stochastic_sampling, each None or absent
            where left out.
        defaults: looked up for `distilled`, and `guidance_scale`, the only one that is allowed then.
    Raises:
        RequestError: names the value, the rule and what would fit.
    """
    if not defaults.get("distilled"):
        return
    own = defaults.get("guidance_scale")
    own = 1.0 if own is None else own
    scale = given.get("guidance_scale")
    scales = list(scale) if isinstance(scale, (list, tuple)) else [scale]
    if any(value is not None and value != own for value in scales):
        raise RequestError(
            f"guidance_scale={scale!r}: this model was distilled with its guidance, and more would count twice; use "
            f"guidance_scale={own:g}, or leave it out."
        )
    for name in ("stg_scale", "cfg_star", "guidance", "stochastic_sampling"):
        if given.get(name):
            raise RequestError(
                f"{name}={given[name]!r}: this model was distilled for plain Euler steps, nothing else; leave it out."
            )


def settle(given: Mapping[str, Any], *defaults: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Decide what holds for a call: the caller, then a preset of the model, then `defaults` in their order.

    The only resolver: requests and pipelines both fill in what is left out by it.

    Args:
        given: what the caller says; None is left out.
        *defaults: of the memory plan, the LoRAs, the model, the scheduler, the convention; the first that says
            something counts.
    Returns:
        What holds whatever task it is: what the caller says, the preset's settings, the steps and the guidance. And
        all defaults by name, of which a task takes what it has.
    Raises:
        RequestError: a preset that the model does not have, or steps or a guidance that it cannot do.
    """
    values = {name: value for name, value in given.items() if value is not None}
    known: dict[str, Any] = {}
    for source in reversed(defaults):
        known |= {name: value for name, value in source.items() if value is not None}
    preset = preset_settings(values.get("preset"), known)
    check_guidance({**preset, **values}, known)
    known |= preset
    steps = settle_steps(values, known)
    for name in ("sigmas", "timesteps"):  # settled with the steps
        known.pop(name, None)
    known |= {name: value for name, value in steps._asdict().items() if value is not None}
    if known.get("sigmas") is not None or values.get("timesteps") is not None:
        known = {name: value for name, value in known.items() if name not in _WITH_SCHEDULES}
    settled = {**{name: known[name] for name in preset if name in known}, **values}
    settled |= {name: value for name, value in steps._asdict().items() if value is not None}
    _settle_perturbation(settled, values, known)
    return settled, known


def _settle_perturbation(settled: dict[str, Any], given: Mapping[str, Any], known: dict[str, Any]) -> None:
    """Spatiotemporal guidance: its blocks and mode where it is on, nothing of it where it is off."""
    scale = settled.get("stg_scale", known.get("stg_scale"))
    if not scale:
        if scale is None and ("stg_blocks" in given or "stg_mode" in given):
            raise RequestError("stg_blocks and stg_mode do nothing without stg_scale: give stg_scale=1, for instance.")
        for name in {"stg_blocks", "stg_mode"} - given.keys():
            known.pop(name, None), settled.pop(name, None)
        return
    known.setdefault("stg_mode", SKIP_MODES[0])
    settled |= {name: known[name] for name in ("stg_scale", "stg_blocks", "stg_mode") if name in known} | settled
    if "stg_blocks" not in settled and "guidance" not in given:
        shown = f"{scale:g}" if isinstance(scale, (int, float)) else repr(scale)
        raise RequestError(
            f"stg_scale={shown} needs stg_blocks: the transformer blocks that are perturbed, for instance one in the "
            "middle; or stg_scale=0, which is off."
        )
