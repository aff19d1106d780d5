"""Given pixels: what the caller hands in, checked and read before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from vgen.diffusion.conditions import REFERENCE_FRAME
from vgen.errors import RequestError, ShapeError, VgenError
from vgen.types import Strides, VideoShape


@dataclass(frozen=True, eq=False)
class VideoCondition:
    """Known pixels of a clip.

    Attributes:
        frames: an image or a clip of the size to be generated: a PIL image, a list of them, a uint8 array
            [F, H, W, 3] or [H, W, 3], or a float tensor [F, 3, H, W] or [3, H, W] in [0, 1].
        frame_index: where it starts; negative counts from the end (-1 is the last frame).
        strength: 1 = exactly this, 0 = ignore it.
        mask: [F, H, W] or [H, W] in [0, 1], 1 = given, 0 = hidden; None: everything is given.
        reference: an image that says how things look and is no frame of the clip; it has no frame_index.
    """

    frames: Any
    frame_index: int = 0
    strength: float = 1.0
    mask: Any = None
    reference: bool = False


@dataclass(frozen=True, eq=False)
class GivenPixels:
    """A condition, read: one for all prompts (P = 1) or one a prompt.

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


def read_frames(frames: Any, name: str = "frames") -> Tensor:
    """Read an image or a clip: [F, 3, H, W] in [0, 1], float32.

    Args:
        frames: see `VideoCondition`.
        name: what errors call it.
    Raises:
        RequestError: of no kind that can be read.
    """
    if isinstance(frames, PIL.Image.Image):
        frames = [frames]
    if isinstance(frames, (list, tuple)):
        return _stack(frames, name)
    if isinstance(frames, np.ndarray) and frames.dtype == np.uint8:
        array = frames[None] if frames.ndim == 3 else frames
        if array.ndim == 4 and array.shape[-1] == 3 and array.shape[0]:
            return torch.from_numpy(np.ascontiguousarray(array)).permute(0, 3, 1, 2).float() / 255
    if isinstance(frames, Tensor) and frames.is_floating_point():
        tensor = frames[None] if frames.ndim == 3 else frames
        if tensor.ndim == 4 and tensor.shape[1] == 3 and tensor.shape[0]:
            return _in_unit_range(tensor.detach().float().cpu(), name)
    kind = f"{type(frames).__name__} {getattr(frames, 'dtype', '')} {tuple(getattr(frames, 'shape', ()))}"
    raise RequestError(
        f"{name} is a {kind}: it must be a PIL image, a list of them, a uint8 array [F, H, W, 3] or [H, W, 3], "
        "or a float tensor [F, 3, H, W] or [3, H, W] in [0, 1]."
    )


def _stack(frames: Sequence[Any], name: str) -> Tensor:
    if not frames or not all(isinstance(frame, PIL.Image.Image) for frame in frames):
        raise RequestError(f"{name} is a list that is empty or holds something else than PIL images.")
    if len({frame.size for frame in frames}) > 1:
        sizes = sorted({f"{frame.height}x{frame.width}" for frame in frames})
        raise ShapeError(f"{name} holds pictures of several sizes ({', '.join(sizes)}): they must be the same.")
    arrays = np.stack([np.asarray(frame.convert("RGB")) for frame in frames])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 255


def _in_unit_range(tensor: Tensor, name: str) -> Tensor:
    low, high = tensor.min().item(), tensor.max().item()
    if not (low >= -1e-4 and high <= 1 + 1e-4):
        raise RequestError(f"{name} holds values from {low:.3g} to {high:.3g}: they must lie in [0, 1].")
    return tensor


def read_mask(mask: Any, shape: VideoShape, name: str = "mask") -> Tensor:
    """Read a mask: [F, H, W] in [0, 1], float32, 1 = given.

    Args:
        mask: array or tensor [F, H, W] or [H, W], bool or number in [0, 1], or a PIL image (white = given).
        shape: of the frames it belongs to.
        name: what errors call it.
    Raises:
        RequestError: another size, or values outside [0, 1].
    """
    if isinstance(mask, PIL.Image.Image):
        mask = np.asarray(mask.convert("L"), dtype=np.float32) / 255
    tensor = torch.as_tensor(mask).detach().float().cpu()
    if tensor.ndim == 2:
        tensor = tensor.expand(shape.num_frames, -1, -1)
    if tuple(tensor.shape) != tuple(shape):
        raise ShapeError(
            f"{name} has shape {tuple(tensor.shape)} and its frames {tuple(shape)}: "
            "it must be [F, H, W] of the same size, or [H, W]."
        )
    return _in_unit_range(tensor, name)


def read_conditions(
    conditions: Sequence[VideoCondition] | Sequence[Sequence[VideoCondition]],
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
            raise RequestError(f"conditions holds lists, one a prompt: {len(conditions)} for {num_prompts} prompts.")
        rows = [read_conditions(entry, shape, strides, 1, prefix_latent_frames) for entry in lists]
        if len({len(row) for row in rows}) > 1:
            raise RequestError("conditions holds lists of several lengths: every prompt needs as many.")
        return [_join(column, index) for index, column in enumerate(zip(*rows, strict=True))]
    given = []
    for index, condition in enumerate(conditions):
        name = f"conditions[{index}]"
        if not isinstance(condition, VideoCondition):
            raise RequestError(f"{name} is a {type(condition).__name__}: it must be a VideoCondition.")
        given.append(_read(condition, name, shape, strides, prefix_latent_frames))
    _refuse_overlap(given)
    return given


def _read(
    condition: VideoCondition, name: str, shape: VideoShape, strides: Strides, prefix_latent_frames: int | None
) -> GivenPixels:
    pixels = read_frames(condition.frames, f"{name}.frames")
    frames, _, height, width = pixels.shape
    if (height, width) != (shape.height, shape.width):
        raise ShapeError(
            f"{name}.frames is {height}x{width} and the clip {shape.height}x{shape.width} (height x width): "
            "resize or crop it first, or generate at its size."
        )
    if not 0 <= condition.strength <= 1:
        raise RequestError(f"{name}.strength={condition.strength} must be in [0, 1]; 1 is exactly this.")
    start = _start(condition, name, frames, shape, strides, prefix_latent_frames)
    mask = None
    if condition.mask is not None:
        mask = read_mask(condition.mask, VideoShape(frames, height, width), f"{name}.mask")[None, None]
    pixels = pixels.permute(1, 0, 2, 3)[None] * 2 - 1
    return GivenPixels(pixels, start, torch.tensor([float(condition.strength)]), mask)


def _start(
    condition: VideoCondition,
    name: str,
    frames: int,
    shape: VideoShape,
    strides: Strides,
    prefix_latent_frames: int | None,
) -> int:
    """The frame at which a condition starts."""
    if condition.reference:
        if frames > 1 or condition.frame_index:
            raise RequestError(
                f"{name} is a reference of {frames} frames at frame_index={condition.frame_index}: a reference is one "
                "image and no frame of the clip; give one, and leave frame_index out."
            )
        return REFERENCE_FRAME
    start = condition.frame_index + (shape.num_frames if condition.frame_index < 0 else 0)
    if not 0 <= start < shape.num_frames:
        raise RequestError(
            f"{name}.frame_index={condition.frame_index} lies outside the clip of {shape.num_frames} frames: "
            f"use {-shape.num_frames} to {shape.num_frames - 1}."
        )
    try:
        VideoShape(frames, shape.height, shape.width).check(strides)
    except VgenError as error:
        raise ShapeError(f"{name}.frames: {error}") from None
    if start + frames > shape.num_frames:
        raise ShapeError(
            f"{name} has {frames} frames from frame {start} and the clip ends with frame {shape.num_frames - 1}: "
            f"start it at {shape.num_frames - frames} or earlier, or give fewer frames."
        )
    latent_frames = (frames - 1) // strides.temporal + 1
    if prefix_latent_frames is not None and start and latent_frames > prefix_latent_frames and start % strides.temporal:
        below = start // strides.temporal * strides.temporal
        raise ShapeError(
            f"{name}.frame_index={start} does not fit temporal stride {strides.temporal}: a clip of {frames} frames "
            f"must start at a multiple of it; use {below} or {below + strides.temporal}."
        )
    return start


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


def per_prompt(material: Any, num_prompts: int, name: str) -> list[Any]:
    """Split `image=` and the like into one for all prompts (a list of one) or one a prompt.

    Args:
        material: an image, a list of images, or a batch (uint8 [P, H, W, 3], float [P, 3, H, W]).
        num_prompts: P.
        name: what errors call it.
    Raises:
        RequestError: neither one nor `num_prompts`.
    """
    is_batch = isinstance(material, (list, tuple)) or getattr(material, "ndim", 0) == 4
    images = list(material) if is_batch else [material]
    if len(images) not in (1, num_prompts):
        raise RequestError(f"{name} holds {len(images)} images for {num_prompts} prompts: give one, or one a prompt.")
    return images
