"""Between latent videos [B, C, F, H, W] and transformer tokens [B, N, C], and where each token lies."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from vgen.errors import ShapeError
from vgen.types import LatentShape, Strides


def pack(latents: Tensor, patch_size: int = 1) -> Tensor:
    """Turn latents into tokens, frame-major: frames, then rows, then columns.

    Args:
        latents: [B, C, F, H, W]; H and W divide by `patch_size`.
        patch_size: latents per token along rows and columns, the transformer's `patch_size`.
    Returns:
        [B, F * H / p * W / p, C * p * p].
    Raises:
        ShapeError: not five axes, or a size that does not divide.
    """
    if latents.ndim != 5 or latents.shape[-2] % patch_size or latents.shape[-1] % patch_size:
        raise ShapeError(
            f"latents of shape {tuple(latents.shape)} cannot be packed: they must be [B, C, F, H, W] "
            f"with H and W divisible by patch size {patch_size}."
        )
    return rearrange(latents, "b c f (h p) (w q) -> b (f h w) (c p q)", p=patch_size, q=patch_size)


def unpack(tokens: Tensor, shape: LatentShape, patch_size: int = 1) -> Tensor:
    """Undo `pack`.

    Args:
        tokens: [B, N, C * p * p].
        shape: the latent size (of `latents`, not of the token grid).
        patch_size: latents per token along rows and columns.
    Returns:
        [B, C, F, H, W].
    Raises:
        ShapeError: N is not what `shape` gives.
    """
    grid = token_grid(shape, patch_size)
    if tokens.ndim != 3 or tokens.shape[1] != grid.num_tokens:
        raise ShapeError(
            f"tokens of shape {tuple(tokens.shape)} do not fit the latent size {tuple(shape)}: "
            f"they must be [B, {grid.num_tokens}, C]."
        )
    return rearrange(
        tokens,
        "b (f h w) (c p q) -> b c f (h p) (w q)",
        f=grid.frames, h=grid.height, w=grid.width, p=patch_size, q=patch_size,
    )  # fmt: skip


def token_grid(shape: LatentShape, patch_size: int = 1) -> LatentShape:
    """The size of the token grid of a latent video: the shape that `token_coordinates` takes."""
    return LatentShape(shape.frames, shape.height // patch_size, shape.width // patch_size)


def token_strides(strides: Strides, patch_size: int = 1) -> Strides:
    """Pixels per token: the VAE's strides times the transformer's patch size. What sizes must divide by."""
    return Strides(strides.temporal, strides.height * patch_size, strides.width * patch_size)


def token_coordinates(
    shape: LatentShape,
    strides: Strides,
    frame_rate: float,
    causal: bool = True,
    frame_offset: int = 0,
    batch: int = 1,
    device: torch.device | str | None = None,
) -> Tensor:
    """Where each token starts in the clip: seconds, pixel row, pixel column.

    A causal VAE gives the first frame a latent of its own, so with `causal` latent frame f starts at pixel frame
    max(0, temporal * f - (temporal - 1)); without it at temporal * f.

    Args:
        shape: size of the token grid of the material.
        strides: pixels per token.
        frame_rate: frames per second, above 0.
        causal: see above.
        frame_offset: pixel frame of the clip at which the material starts.
        batch: leading size of the result (a view, not a copy).
        device: where to put it.
    Returns:
        [batch, 3, N], float32.
    Raises:
        ShapeError: `frame_rate` is not above 0.
    """
    if not frame_rate > 0:
        raise ShapeError(f"frame_rate={frame_rate} is not a frame rate: it must be above 0, for instance 24.")
    frames = torch.arange(shape.frames, dtype=torch.float32, device=device)
    # The two products are written so that their float32 rounding is that of the public LTX weights' reference.
    if causal:
        pixel_frames = (frames * strides.temporal + 1 - strides.temporal).clamp(min=0) + frame_offset
        seconds = pixel_frames * (1.0 / frame_rate)
    else:
        seconds = (frames + frame_offset / strides.temporal) * (strides.temporal / frame_rate)
    rows = torch.arange(shape.height, dtype=torch.float32, device=device) * strides.height
    columns = torch.arange(shape.width, dtype=torch.float32, device=device) * strides.width
    grid = torch.stack(torch.meshgrid(seconds, rows, columns, indexing="ij"))
    return rearrange(grid, "p f h w -> p (f h w)").expand(batch, -1, -1)
