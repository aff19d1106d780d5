"""Pixels that a caller hands in: pictures, clips and masks of every kind to tensors, fitted to a size where asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import PIL.Image
import torch
from einops import rearrange
from torch import Tensor

from vgen.errors import RequestError, ShapeError, counted
from vgen.io.media.images import as_rgb, fit_image
from vgen.io.media.masks import mask_values
from vgen.types import FitMode, VideoShape

_KINDS = (
    "it must be a PIL image, an array [F, H, W, 3] or [H, W, 3], a tensor [F, 3, H, W] or [3, H, W], uint8 or float in "
    "[0, 1], or a list of single frames"
)
_ROUNDING = 1e-4
"""By how much floats may leave [0, 1]."""


def read_frames(frames: Any, name: str = "frames") -> Tensor:
    """Read an image or a clip: [F, 3, H, W] in [0, 1], float32.

    Args:
        frames: see `VideoCondition`.
        name: what errors call it.
    Raises:
        RequestError: of no kind that can be read, several clips, or floats outside [0, 1].
    """
    if isinstance(frames, PIL.Image.Image):
        frames = np.asarray(as_rgb(frames, name=name))
    if isinstance(frames, (list, tuple)):
        return _read_list(frames, name)
    if isinstance(frames, (np.ndarray, Tensor)):
        _refuse_batch(frames, name)
        clip = frames[None] if frames.ndim == 3 else frames
        if clip.ndim == 4 and clip.shape[0]:
            if isinstance(clip, np.ndarray) and clip.shape[-1] == 3 and clip.dtype.kind in "fu":
                plain = np.require(clip, np.float32 if clip.dtype.kind == "f" else None, ["C", "W"])
                return _in_unit_range(torch.from_numpy(plain).permute(0, 3, 1, 2), name)
            if isinstance(clip, Tensor) and clip.shape[1] == 3:
                return _in_unit_range(clip.detach().cpu(), name)
    elif hasattr(frames, "frames"):
        raise RequestError(f"{name} is what a pipeline returned: give one of its clips, as {name}.frames[0].")
    raise RequestError(f"{name} is a {_described(frames)}: {_KINDS}.")


def _described(frames: Any) -> str:
    return " ".join(
        str(part)
        for part in (type(frames).__name__, getattr(frames, "dtype", ""), tuple(getattr(frames, "shape", ())) or "")
        if part != ""
    )


def _refuse_batch(frames: np.ndarray | Tensor, name: str) -> None:
    if frames.ndim == 5 and 3 in (frames.shape[2], frames.shape[4]):
        raise RequestError(
            f"{name} {tuple(frames.shape)} is a batch of {counted(frames.shape[0], 'clip')}: give one of them, as "
            f"{name}[0]."
        )


def _read_list(frames: Sequence[Any], name: str) -> Tensor:
    if not frames:
        raise RequestError(f"{name} is an empty list: {_KINDS}.")
    if isinstance(frames[0], (list, tuple)) or getattr(frames[0], "ndim", 3) == 4:
        raise RequestError(f"{name} is a list of {counted(len(frames), 'clip')}: give one of them, as {name}[0].")
    read = [read_frames(frame, f"{name}[{index}]") for index, frame in enumerate(frames)]
    if len({frame.shape for frame in read}) > 1:
        sizes = sorted({f"{frame.shape[2]}x{frame.shape[3]}" for frame in read})
        raise ShapeError(f"{name} holds pictures of several sizes ({', '.join(sizes)}): they must be the same.")
    return torch.cat(read)


def _in_unit_range(tensor: Tensor, name: str) -> Tensor:
    """Float32 in [0, 1]; uint8 stands for 0 to 255."""
    if tensor.dtype == torch.uint8:
        return tensor.float() / 255
    if not tensor.is_floating_point():
        raise RequestError(f"{name} has numbers of type {tensor.dtype}: {_KINDS}.")
    low, high = tensor.min().item(), tensor.max().item()
    if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):
        hint = " Divide by 255, or give uint8." if low >= 0 and 2 < high <= 255 else ""
        hint = " Add 1 and halve them." if -1 - _ROUNDING <= low < 0 and high <= 1 + _ROUNDING else hint
        raise RequestError(f"{name} holds values from {low:.3g} to {high:.3g}: they must be in [0, 1].{hint}")
    return tensor.float().clamp(0, 1)


def read_mask(mask: Any, shape: VideoShape, name: str = "mask") -> Tensor:
    """Read a mask: [F, H, W] in [0, 1], float32, 1 = given.

    Args:
        mask: array or tensor [F, H, W] or [H, W], bool or number in [0, 1]; or a PIL image, or a list of one per frame
            (white and opaque = given, see `vgen.io.media.masks.mask_values`).
        shape: of the frames it belongs to.
        name: what errors call it.
    Raises:
        RequestError: another size, or values outside [0, 1].
    """
    if isinstance(mask, PIL.Image.Image):
        mask = mask_values(mask, name)
    elif isinstance(mask, (list, tuple)) and mask and all(isinstance(entry, PIL.Image.Image) for entry in mask):
        masks = [mask_values(entry, f"{name}[{index}]") for index, entry in enumerate(mask)]
        if len({entry.shape for entry in masks}) > 1:
            raise ShapeError(f"{name} holds pictures of several sizes: they must be the same.")
        mask = np.stack(masks)
    try:
        tensor = torch.as_tensor(mask).detach().float().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise RequestError(f"{name} is a {_described(mask)}: it must be a picture, an array or a tensor.") from None
    if tensor.ndim == 2:
        tensor = tensor.expand(shape.num_frames, -1, -1)
    if tuple(tensor.shape) != tuple(shape):
        raise ShapeError(
            f"{name} has shape {tuple(tensor.shape)} and its frames {tuple(shape)}: "
            "it must be [F, H, W] of the same size, or [H, W]."
        )
    return _in_unit_range(tensor, name)


def check_fit(fit: FitMode | None) -> None:
    """Refuse a way to fit that does not exist.

    Raises:
        RequestError: names those that do.
    """
    if fit is not None and fit not in get_args(FitMode):
        legal = ", ".join(map(repr, get_args(FitMode)))
        raise RequestError(f"fit={fit!r} must be one of {legal}, or None, which refuses pixels of another size.")


def fit_frames(frames: Tensor, height: int, width: int, fit: FitMode) -> Tensor:
    """Bring frames to a size as the commands do, see `vgen.io.media.images.fit_image`: rounded to 8 bits first.

    Args:
        frames: [F, 3, H, W] in [0, 1].
        height, width: pixels.
        fit: how.
    Returns:
        [F, 3, height, width] in [0, 1]; the same where they have this size.
    """
    if tuple(frames.shape[2:]) == (height, width):
        return frames
    pixels = (rearrange(frames, "f c h w -> f h w c") * 255).round().to(torch.uint8).numpy()
    fitted = [np.asarray(fit_image(PIL.Image.fromarray(frame), height, width, fit)) for frame in pixels]
    return rearrange(torch.from_numpy(np.stack(fitted)).float() / 255, "f h w c -> f c h w")


def fit_mask(mask: Tensor, height: int, width: int, fit: FitMode) -> Tensor:
    """Bring a mask [F, H, W] (1 = given) to a size along with its frames.

    What "contain" adds around them is given: black, as the frames say.
    """
    hidden = (1 - mask)[:, None].expand(-1, 3, -1, -1)
    return 1 - fit_frames(hidden, height, width, fit)[:, 0]
