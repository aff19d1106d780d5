"""Given pixels at another size: what one pass knows, for a pass of another size."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from vgen.diffusion.hiding import hide_pixels
from vgen.errors import RequestError
from vgen.pipelines.coding.given_pixels import Conditions, GivenPixels, VideoCondition, read_fitted
from vgen.pipelines.coding.pixels import read_frames, read_mask
from vgen.pipelines.coding.soften import soften
from vgen.types import VideoShape


def resize_conditions(conditions: Conditions, target: VideoShape, shape: VideoShape, every: int = 1) -> Conditions:
    """Bring conditions to another size.

    Args:
        conditions: of the size `target`, checked.
        target: the clip they belong to.
        shape: the clip they shall belong to.
        every: frames are every `every`-th of the target's.
    Returns:
        The same nesting. Pixels are resized bilinearly; of a mask only what depends on no hidden pixel stays given.
    Raises:
        RequestError: a condition that has no place among every `every`-th frame.
    """
    return [
        _resize_condition(entry, target, shape, every)
        if isinstance(entry, VideoCondition)
        else resize_conditions(entry, target, shape, every)
        for entry in conditions
    ]  # type: ignore[return-value]


def fit_conditions(conditions: Conditions, shape: VideoShape) -> Conditions:
    """Read conditions and fit them to the clip of a call; the same nesting, all of one size.

    Raises:
        RequestError: see `vgen.pipelines.coding.given_pixels.read_fitted`.
    """
    fitted: list[Any] = []
    for entry in conditions:
        if isinstance(entry, VideoCondition):
            frames, mask = read_fitted(entry, shape)
            fitted.append(replace(entry, frames=frames, mask=mask, fit=None))
        else:
            fitted.append(fit_conditions(entry, shape))
    return fitted


def soften_conditions(conditions: Conditions, crf: int) -> Conditions:
    """Soften conditions at the size in which they are given; see vgen.pipelines.coding.soften.

    Args:
        conditions: checked.
        crf: 0 leaves them as they are.
    Returns:
        The same nesting. What a mask hides is blanked first, so that it does not bleed into its neighbours.
    """
    if crf == 0:
        return conditions
    return [
        _soften_condition(entry, crf) if isinstance(entry, VideoCondition) else soften_conditions(entry, crf)
        for entry in conditions
    ]  # type: ignore[return-value]


def _soften_condition(condition: VideoCondition, crf: int) -> VideoCondition:
    frames = read_frames(condition.frames)
    if condition.mask is not None:
        frames = _blank(frames, read_mask(condition.mask, VideoShape(len(frames), *frames.shape[-2:])))
    soft = soften(rearrange(frames, "f c h w -> 1 c f h w") * 2 - 1, crf)
    return replace(condition, frames=(rearrange(soft, "1 c f h w -> f c h w") / 2 + 0.5).clamp(0, 1))


def resize_clip(clip: GivenPixels, shape: VideoShape, every: int = 1) -> GivenPixels:
    """Bring a whole clip without a mask, [P, 3, F, H, W], to another size; see `resize_conditions`."""
    pixels = rearrange(clip.pixels[:, :, ::every], "p c f h w -> (p f) c h w")
    resized = resize_frames(pixels, shape.height, shape.width)
    return replace(clip, pixels=rearrange(resized, "(p f) c h w -> p c f h w", p=clip.pixels.shape[0]))


def resize_frames(frames: Tensor, height: int, width: int) -> Tensor:
    """[F, C, H, W] -> [F, C, height, width], bilinear, as LTX-Video's own code does between its passes."""
    if tuple(frames.shape[-2:]) == (height, width):
        return frames
    return F.interpolate(frames, size=(height, width), mode="bilinear", align_corners=False)


def resize_video(video: Tensor, height: int, width: int) -> Tensor:
    """[B, 3, F, H, W] about [-1, 1] -> [B, 3, F, height, width] in [-1, 1], clip by clip."""
    clips = ((rearrange(clip, "c f h w -> f c h w") * 0.5 + 0.5).clamp(0, 1) for clip in video)
    resized = torch.stack([resize_frames(clip, height, width) for clip in clips])
    return rearrange(resized, "b f c h w -> b c f h w") * 2 - 1


def resize_mask(mask: Tensor, height: int, width: int) -> Tensor:
    """Resize a mask so that it never calls given what a bilinear resize mixes with something hidden.

    Args:
        mask: [F, H, W] in [0, 1], 1 = given.
    Returns:
        [F, height, width]: the smallest value around the nearest pixel, which holds every pixel that is mixed in.
    """
    if tuple(mask.shape[-2:]) == (height, width):
        return mask
    smallest = -F.max_pool2d(-mask[:, None], kernel_size=3, stride=1, padding=1)
    return F.interpolate(smallest, size=(height, width), mode="nearest-exact")[:, 0]


def _blank(frames: Tensor, mask: Tensor) -> Tensor:
    """Frames [F, 3, H, W] in [0, 1] without the pixels whose mask [F, H, W] is 0."""
    visible = (mask > 0).to(frames)[None, None]
    centred = hide_pixels(rearrange(frames, "f c h w -> 1 c f h w") * 2 - 1, visible)
    return rearrange(centred, "1 c f h w -> f c h w") / 2 + 0.5


def _resize_condition(condition: VideoCondition, target: VideoShape, shape: VideoShape, every: int) -> VideoCondition:
    frames = read_frames(condition.frames)
    count = len(frames)
    start = condition.frame_index + (target.num_frames if condition.frame_index < 0 else 0)  # 0 for a reference
    if every > 1 and start % every:
        raise RequestError(
            f"frame_index={condition.frame_index} falls between the frames of the first pass, which has every "
            f"{every}nd one: use {start - start % every} or {start + every - start % every}."
        )
    mask: Any = None
    if condition.mask is not None:
        mask = read_mask(condition.mask, VideoShape(count, *frames.shape[-2:]))
        frames = _blank(frames, mask)
        mask = resize_mask(mask[::every], shape.height, shape.width)
    resized = resize_frames(frames[::every], shape.height, shape.width).clamp(0, 1)
    return replace(condition, frames=resized, frame_index=start // every, mask=mask)
