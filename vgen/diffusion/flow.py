"""Flow matching on a straight path: interpolation, velocity and the conversions between them.

x_sigma = (1 - sigma) clean + sigma noise and velocity = noise - clean, so sigma 0 is data and sigma 1 is noise.
Everything is computed in float32 (float64 where the input is float64) and returned in the dtype of the first tensor.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vgen.errors import ShapeError


def interpolate(clean_latents: Tensor, noise: Tensor, sigmas: Tensor) -> Tensor:
    """Mix clean latents and noise: x_sigma = (1 - sigma) clean + sigma noise.

    Args:
        clean_latents: [B, C, F, H, W] or tokens [B, N, C].
        noise: same shape.
        sigmas: [B], [B, N] for tokens, or [B, 1, F, H, W]; in [0, 1], 1 is pure noise.
    Returns:
        Shape and dtype of `clean_latents`.
    Raises:
        ShapeError: shapes do not fit each other.
    Source: Lipman et al. 2022, eq. 22, with time reversed.
    """
    clean, sigma = _prepare(clean_latents, noise, sigmas)
    return ((1 - sigma) * clean + sigma * noise.to(clean.dtype)).to(clean_latents.dtype)


def velocity_target(clean_latents: Tensor, noise: Tensor) -> Tensor:
    """The velocity the model learns: noise - clean.

    Args:
        clean_latents: [B, C, F, H, W] or tokens [B, N, C].
        noise: same shape.
    Returns:
        Shape and dtype of `clean_latents`.
    Raises:
        ShapeError: shapes differ.
    Source: Lipman et al. 2022, eq. 23, with time reversed.
    """
    _same_shape(clean_latents, noise)
    working = _working_dtype(clean_latents)
    return (noise.to(working) - clean_latents.to(working)).to(clean_latents.dtype)


def velocity_to_clean(latents: Tensor, velocity: Tensor, sigmas: Tensor) -> Tensor:
    """Recover the clean latents from a velocity: clean = latents - sigma velocity.

    Args:
        latents: [B, C, F, H, W] or tokens [B, N, C], noisy at `sigmas`.
        velocity: same shape, noise - clean.
        sigmas: [B], [B, N] for tokens, or [B, 1, F, H, W].
    Returns:
        Shape and dtype of `latents`.
    Raises:
        ShapeError: shapes do not fit each other.
    """
    noisy, sigma = _prepare(latents, velocity, sigmas)
    return (noisy - sigma * velocity.to(noisy.dtype)).to(latents.dtype)


def expand_sigmas(sigmas: Tensor, latents: Tensor) -> Tensor:
    """Give `sigmas` trailing axes so that they broadcast against `latents`.

    Args:
        sigmas: [], [B], [B, N] for tokens, or [B, 1, F, H, W].
        latents: [B, C, F, H, W] or tokens [B, N, C].
    Returns:
        A view of `sigmas` with as many axes as `latents`.
    Raises:
        ShapeError: the leading axes do not fit.
    """
    view = sigmas.reshape(*sigmas.shape, *(1 for _ in range(latents.ndim - sigmas.ndim)))
    fits = view.ndim == latents.ndim and all(
        have in (1, want) for have, want in zip(view.shape, latents.shape, strict=True)
    )
    if not fits:
        raise ShapeError(
            f"sigmas of shape {tuple(sigmas.shape)} do not fit latents of shape {tuple(latents.shape)}: "
            "use [B], [B, N] with tokens [B, N, C], or [B, 1, F, H, W] with latents [B, C, F, H, W]."
        )
    return view


def _prepare(first: Tensor, second: Tensor, sigmas: Tensor) -> tuple[Tensor, Tensor]:
    _same_shape(first, second)
    working = _working_dtype(first)
    return first.to(working), expand_sigmas(sigmas, first).to(device=first.device, dtype=working)


def _same_shape(first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape:
        raise ShapeError(f"Shapes differ: {tuple(first.shape)} and {tuple(second.shape)}; they must be the same.")


def _working_dtype(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
