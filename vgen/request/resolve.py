"""What a request leaves open, settled field by field from the model's defaults and the given video; without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vgen.errors import RequestError, ShapeError, bytes_text, counted
from vgen.types import SKIP_MODES, Strides, VideoShape

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


def frames_to_restyle(
    asked: int | None, defaults: Mapping[str, Any], stride: int, video_frames: int | None
) -> int | None:
    """How many frames of the given video are made anew: as many as the model makes by default and the video has."""
    if video_frames is None:
        return asked
    most = (video_frames - 1) // stride * stride + 1
    if asked is not None and asked > video_frames:
        raise RequestError(
            f"num_frames={asked} and the video has {counted(video_frames, 'frame')}: use {most} or fewer."
        )
    if asked is not None or defaults.get("num_frames") is None:
        return asked if asked is not None else most
    return min(most, defaults["num_frames"])


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


def settle_guidance(values: dict[str, Any], defaults: Mapping[str, Any], preset: Mapping[str, Any]) -> None:
    """Fill in spatiotemporal guidance where it is on, and refuse it without blocks; and what only presets say."""
    values |= {field: preset[field] for field in ("guidance_sigmas", "cfg_star") if field in preset}
    if values["stg_scale"] is None:
        values["stg_scale"] = preset.get("stg_scale")
    scale = values["stg_scale"]
    if not scale:
        if scale is None and (values["stg_blocks"] is not None or values["stg_mode"] is not None):
            raise RequestError("stg_blocks and stg_mode do nothing without stg_scale: give stg_scale=1, for instance.")
        return
    for field, last in (("stg_blocks", None), ("stg_mode", SKIP_MODES[0])):
        values[field] = values[field] if values[field] is not None else defaults.get(field, last)
    if values["stg_blocks"] is None:
        shown = f"{scale:g}" if isinstance(scale, (int, float)) else repr(scale)
        raise RequestError(
            f"stg_scale={shown} needs stg_blocks: the transformer blocks that are perturbed, for instance one in the "
            "middle; or stg_scale=0, which is off."
        )
