"""Given pixels: what the caller hands in, checked and read before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from vgen.diffusion.conditions import REFERENCE_FRAME
from vgen.errors import RequestError, ShapeError, VgenError, counted
from vgen.pipelines.coding.pixels import check_fit, fit_frames, fit_mask, read_frames, read_mask
from vgen.types import FitMode, Strides, VideoShape


@dataclass(frozen=True, eq=False)
class VideoCondition:
    """Known pixels of a clip.

    Attributes:
        frames: an image or a clip of the size to be generated: what a pipeline gives out, of any `output_type` but
            "latent". That is a PIL image of any mode, an array [F, H, W, 3] or [H, W, 3], a tensor [F, 3, H, W] or
            [3, H, W], or a list of single frames; arrays and tensors uint8, or float in [0, 1].
        frame_index: where it starts; negative counts from the end (-1 is the last frame).
        strength: 1 = exactly this, 0 = ignore it.
        mask: of the size of `frames`: [F, H, W] or [H, W] in [0, 1], 1 = given, 0 = hidden; or a PIL image, or one per
            frame, white and opaque = given; None: everything is given.
        reference: an image that says how things look and is no frame of the clip; it has no frame_index.
        fit: how frames and mask of another size are brought to that of the clip: "cover" fills it and cuts what stands
            over, "contain" shows all and fills the rest with black, "stretch" changes the shape; None refuses them.
        name: what errors call it, for instance "image"; by default its place among the conditions.
    """

    frames: Any
    frame_index: int = 0
    strength: float = 1.0
    mask: Any = None
    reference: bool = False
    fit: FitMode | None = None
    name: str | None = None


Conditions = Sequence[VideoCondition] | Sequence[Sequence[VideoCondition]]
"""Of a call: for all prompts, or one list per prompt."""


@dataclass(frozen=True, eq=False)
class GivenPixels:
    """A condition, read: one for all prompts (P = 1) or one per prompt.

    Attributes:
        pixels: [P, 3, F, H, W] in [-1, 1].
        frame_index: 0 or more; REFERENCE_FRAME for a reference.
        strength: [P].
        mask: [P, 1, F, H, W], or None.
    """

    pixels: Tensor
    frame_index: int
    strength: Tensor
    mask: Tensor | None = None

    @property
    def num_frames(self) -> int:
        """F."""
        return self.pixels.shape[2]


def read_conditions(
    conditions: Conditions,
    shape: VideoShape,
    strides: Strides,
    num_prompts: int,
    prefix_latent_frames: int | None,
) -> list[GivenPixels]:
    """Read and check all conditions of a call.

    Args:
        conditions: for all prompts, or one list a prompt that agree in frame_index, length and having a mask.
        shape: of the clip.
        strides: pixels per latent.
        num_prompts: P.
        prefix_latent_frames: see Convention.
    Returns:
        One entry a condition; P = 1 where it is the same for all prompts.
    Raises:
        RequestError: anything that does not fit; names the condition, the value, the rule and what would fit.
    """
    lists = [entry for entry in conditions if isinstance(entry, (list, tuple))]
    if lists:
        if len(conditions) != num_prompts or len(lists) != num_prompts:
            raise RequestError(f"conditions holds lists, one per prompt: {len(conditions)} for {num_prompts} prompts.")
        rows = [read_conditions(entry, shape, strides, 1, prefix_latent_frames) for entry in lists]
        if len({len(row) for row in rows}) > 1:
            raise RequestError("conditions holds lists of several lengths: every prompt needs as many.")
        return [_join(column, index) for index, column in enumerate(zip(*rows, strict=True))]
    given = []
    for index, condition in enumerate(conditions):
        name = f"conditions[{index}]"
        if not isinstance(condition, VideoCondition):
            raise RequestError(f"{name} is a {type(condition).__name__}: it must be a VideoCondition.")
        given.append(_read(condition, condition.name or name, shape, strides, prefix_latent_frames))
    _refuse_overlap(given)
    return given


def _read(
    condition: VideoCondition, name: str, shape: VideoShape, strides: Strides, prefix_latent_frames: int | None
) -> GivenPixels:
    """Read a condition, fit it to the size of the clip, and check where it lies."""
    check_fit(condition.fit)
    frames_name = condition.name or f"{name}.frames"
    frames = read_frames(condition.frames, frames_name)
    own = VideoShape(len(frames), *frames.shape[2:])
    mask = None if condition.mask is None else read_mask(condition.mask, own, f"{name}.mask")
    if (own.height, own.width) != (shape.height, shape.width):
        if condition.fit is None:
            raise ShapeError(
                f"{frames_name} is {own.height}x{own.width} and the clip {shape.height}x{shape.width} (height x "
                "width): pass fit='cover' (or 'contain', 'stretch') to have it fitted, or generate at its size."
            )
        frames = fit_frames(frames, shape.height, shape.width, condition.fit)
        mask = None if mask is None else fit_mask(mask, shape.height, shape.width, condition.fit)
    if not isinstance(condition.strength, Real) or not 0 <= condition.strength <= 1:
        raise RequestError(f"{name}.strength={condition.strength!r} must be a number in [0, 1]; 1 is exactly this.")
    start = _start(condition, name, len(frames), shape)
    if start != REFERENCE_FRAME:
        check_place(name, start, len(frames), shape, strides, prefix_latent_frames)
    pixels = frames.permute(1, 0, 2, 3)[None] * 2 - 1
    return GivenPixels(
        pixels, start, torch.tensor([float(condition.strength)]), None if mask is None else mask[None, None]
    )


def _start(condition: VideoCondition, name: str, frames: int, shape: VideoShape) -> int:
    """The frame at which a condition starts; REFERENCE_FRAME for a reference."""
    if not isinstance(condition.frame_index, Integral):
        raise RequestError(f"{name}.frame_index={condition.frame_index!r} must be a whole number; -1 is the last.")
    if condition.reference:
        if frames > 1 or condition.frame_index:
            raise RequestError(
                f"{name} is a reference of {counted(frames, 'frame')} at frame_index={condition.frame_index}: a "
                "reference is one image and not a frame of the clip; give one, and leave frame_index out."
            )
        return REFERENCE_FRAME
    start = condition.frame_index + (shape.num_frames if condition.frame_index < 0 else 0)
    if not 0 <= start < shape.num_frames:
        raise RequestError(
            f"{name}.frame_index={condition.frame_index} lies outside the clip of "
            f"{counted(shape.num_frames, 'frame')}: use {-shape.num_frames} to {shape.num_frames - 1}."
        )
    return start


def check_place(
    name: str, start: int, frames: int, shape: VideoShape, strides: Strides, prefix_latent_frames: int | None
) -> None:
    """Refuse a condition of `frames` frames from frame `start` on that does not fit a clip of this shape.

    Raises:
        ShapeError: names the nearest that fits.
    """
    try:
        VideoShape(frames, shape.height, shape.width).check(strides)
    except VgenError as error:
        raise ShapeError(f"{name}.frames: {error}") from None
    if start + frames > shape.num_frames:
        raise ShapeError(
            f"{name} has {counted(frames, 'frame')} from frame {start} and the clip ends with frame "
            f"{shape.num_frames - 1}: start it at {shape.num_frames - frames} or earlier, or give fewer frames."
        )
    latent_frames = (frames - 1) // strides.temporal + 1
    if prefix_latent_frames is not None and start and latent_frames > prefix_latent_frames and start % strides.temporal:
        below = start // strides.temporal * strides.temporal
        raise ShapeError(
            f"{name}.frame_index={start} does not fit temporal stride {strides.temporal}: a clip of "
            f"{counted(frames, 'frame')} must start at a multiple of it; use {below} or {below + strides.temporal}."
        )


def _join(column: Sequence[GivenPixels], index: int) -> GivenPixels:
    """One condition of every prompt, as one batch."""
    first = column[0]
    for other in column[1:]:
        same_mask = (first.mask is None) == (other.mask is None)
        if (first.frame_index, first.num_frames) != (other.frame_index, other.num_frames) or not same_mask:
            raise RequestError(
                f"conditions[prompt][{index}] differ between prompts in frame_index, length or having a mask: "
                "generate them in separate calls."
            )
    mask = None if first.mask is None else torch.cat([entry.mask for entry in column if entry.mask is not None])
    return GivenPixels(
        torch.cat([entry.pixels for entry in column]),
        first.frame_index,
        torch.cat([entry.strength for entry in column]),
        mask,
    )


def _refuse_overlap(given: Sequence[GivenPixels]) -> None:
    """Two conditions must not both say with strength 1 what a pixel is."""
    for second, later in enumerate(given):
        for first, earlier in enumerate(given[:second]):
            start = max(earlier.frame_index, later.frame_index)
            end = min(earlier.frame_index + earlier.num_frames, later.frame_index + later.num_frames)
            if start < end and bool((_hard(earlier, start, end) & _hard(later, start, end)).any()):
                raise RequestError(
                    f"conditions[{first}] and conditions[{second}] both give frames {start} to {end - 1} with "
                    "strength 1: move one, shorten it, or give it a mask or a smaller strength."
                )


def _hard(given: GivenPixels, start: int, end: int) -> Tensor:
    """Where `given` holds with strength 1 between two frames of the clip: bool, broadcastable [P, 1, F, H, W]."""
    certain = (given.strength == 1).view(-1, 1, 1, 1, 1)
    if given.mask is None:
        return certain
    return certain & (given.mask[:, :, start - given.frame_index : end - given.frame_index] == 1)


def per_prompt(material: Any, num_prompts: int, name: str, **fields: Any) -> list[VideoCondition]:
    """Split `image=` and the like into one condition for all prompts (a list of one) or one per prompt.

    Args:
        material: an image, a list of images, or a batch (array [P, H, W, 3], tensor [P, 3, H, W]).
        num_prompts: P.
        name: what errors call it.
        **fields: of the conditions.
    Raises:
        RequestError: neither one nor `num_prompts`.
    """
    images = by_prompt(material, name, dimensions=3)
    check_count(len(images), num_prompts, name, "image")
    return [VideoCondition(image, name=own_name, **fields) for image, own_name in images]


def by_prompt(material: Any, name: str, dimensions: int) -> list[tuple[Any, str]]:
    """Images (of 3 dimensions) or clips (of 4), given as one, a list or a batch: each with what errors call it."""
    several = getattr(material, "ndim", 0) == dimensions + 1
    if isinstance(material, (list, tuple)):  # a list of single frames is one clip
        first = material[0] if material else None
        several = dimensions == 3 or isinstance(first, (list, tuple)) or getattr(first, "ndim", 0) == dimensions
    if not several:
        return [(material, name)]
    return [(entry, f"{name}[{index}]" if len(material) > 1 else name) for index, entry in enumerate(material)]


def check_count(count: int, num_prompts: int, name: str, what: str) -> None:
    """Refuse material that is neither one for all prompts nor one per prompt.

    Raises:
        RequestError: names both numbers.
    """
    if count not in (1, num_prompts):
        raise RequestError(
            f"{name} holds {counted(count, what)} for {counted(num_prompts, 'prompt')}: give one, as {name}[0], or one "
            "per prompt."
        )
