"""Every task as known tokens: clean latents, where they lie, and how strongly they hold.

Text to video knows nothing, image to video knows the first frame, prediction a prefix, interpolation both ends,
inpainting whatever its mask leaves. Training and sampling build their inputs with these functions, so they agree:

- material that starts at frame 0 lies *in place*: it shares the tokens of the video it is part of;
- other material becomes *extra* tokens in front of the video's, with its own coordinates, dropped at the end;
- a reference is an image of the things in the clip and no frame of it: extra tokens that lie before its start;
- a token of strength s is never noisier than 1 - s: its sigma is min(sigma, 1 - s), see `token_sigmas`.

What is given must be encoded apart from what is hidden (a causal encoder mixes a frame into all later latents):
`hiding.hide_pixels` before encoding and `cell_strength` for the strength of each latent cell do that for spatial masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import reduce
from torch import Tensor

from vgen.diffusion.flow import interpolate
from vgen.diffusion.tokens import pack, token_coordinates, token_grid, token_strides
from vgen.errors import ShapeError
from vgen.types import LatentShape, Strides

HARD_EPSILON = 1e-6
"""A strength above 1 - HARD_EPSILON counts as 1."""

REFERENCE_FRAME = -16
"""Where a reference lies, in pixel frames: always there, however long ago its picture was taken, so that what it says
is how things look and not where they were."""


def token_sigmas(sigma: Tensor, strength: Tensor) -> Tensor:
    """The sigma of each token: min(sigma, 1 - strength).

    Args:
        sigma: [B] or scalar, the step's sigma.
        strength: [B, N], 1 = given, 0 = unknown.
    Returns:
        [B, N], dtype of `strength`.
    """
    return torch.minimum(sigma.to(strength).reshape(-1, 1), 1 - strength)


def loss_weight(strength: Tensor) -> Tensor:
    """Weight of each token in the training loss: 0 where it is given, 1 elsewhere; [B, N] -> [B, N]."""
    return (strength <= 1 - HARD_EPSILON).to(strength)


def cell_strength(mask: Tensor, strides: Strides) -> Tensor:
    """How much of each latent cell is given: the smallest mask value in it.

    The first frame is a cell of its own in time, then every `strides.temporal` frames are one.

    Args:
        mask: [B, 1, F, H, W] in [0, 1], F = 1 + k * temporal stride, H and W multiples of theirs.
        strides: pixels per latent.
    Returns:
        [B, 1, f, h, w].
    """
    spatial = reduce(
        mask, "b c f (h sh) (w sw) -> b c f h w", "min", sh=strides.height, sw=strides.width
    )  # fmt: skip
    rest = reduce(spatial[:, :, 1:], "b c (f st) h w -> b c f h w", "min", st=strides.temporal)
    return torch.cat([spatial[:, :, :1], rest], dim=2)


@dataclass(frozen=True)
class KnownLatents:
    """A piece of given material.

    Attributes:
        latents: [B, C, f, h, w] (or B = 1), clean and normalised, encoded apart from everything hidden.
        frame_index: pixel frame of the clip at which it starts, 0 or more; REFERENCE_FRAME for a reference.
        strength: one number, or a map [B, 1, f, h, w] (or broadcastable); 1 = given, 0 = not given.
        noise: [B, C, f', h, w] for the f' latent frames that become extra tokens (see `num_extra_frames`);
            needed only where a strength lies between 0 and 1.
    """

    latents: Tensor
    frame_index: int = 0
    strength: float | Tensor = 1.0
    noise: Tensor | None = None

    def strength_map(self, batch: int) -> Tensor:
        """The strength as [batch, 1, f, h, w]."""
        strength = torch.as_tensor(self.strength, dtype=torch.float32, device=self.latents.device)
        return strength.expand(batch, 1, *self.latents.shape[2:])


@dataclass(frozen=True)
class KnownTokens:
    """Extra tokens: latents [B, K, C], coordinates [B, 3, K], strength [B, K], and noise [B, K, C] of soft ones."""

    latents: Tensor
    coordinates: Tensor
    strength: Tensor
    noise: Tensor


@dataclass(frozen=True)
class ConditionSet:
    """All that is known about a clip, as tokens. In every [B, K + N, ...] below the K extra tokens come first.

    Attributes:
        clean_latents: [B, N, C], the in-place material; zero where nothing is given.
        strength: [B, K + N].
        coordinates: [B, 3, K + N].
        extra: the extra tokens, or None.
        is_empty: nothing is known at all (plain text to video).
    """

    clean_latents: Tensor
    strength: Tensor
    coordinates: Tensor
    extra: KnownTokens | None
    is_empty: bool

    @property
    def num_extra(self) -> int:
        """K, the number of extra tokens."""
        return 0 if self.extra is None else self.extra.latents.shape[1]

    def start(self, noise: Tensor, clip: Tensor | None = None, sigma: Tensor | float = 1.0) -> Tensor:
        """The tokens that sampling starts from: noise, or a noised clip, with the given material mixed in.

        (1 - strength) ((1 - sigma) clip + sigma noise) + strength given. Below sigma 1 a token of soft strength keeps
        part of the clip, so its noise is less than the sigma that the model sees (see `token_sigmas`): strength 0.01
        changes little, and the public models are sampled in this way.

        Args:
            noise: [B, N, C], noise of the video tokens.
            clip: [B, N, C], clean latents of a clip to start from; None: noise alone.
            sigma: [B] or scalar, where the schedule starts; counts only with a clip.
        Returns:
            [B, K + N, C].
        Source: LTX-Video's public inference code (`prepare_latents`, `prepare_conditioning`).
        """
        tokens = noise.to(self.clean_latents)
        if clip is not None:
            start = torch.as_tensor(sigma, dtype=torch.float32, device=tokens.device)
            tokens = interpolate(clip.to(tokens), tokens, start.expand(tokens.shape[0]))
        tokens = interpolate(self.clean_latents, tokens, 1 - self.strength[:, self.num_extra :])
        if self.extra is None:
            return tokens
        extra = interpolate(self.extra.latents, self.extra.noise, 1 - self.extra.strength)
        return torch.cat([extra, tokens], dim=1)

    def noised(self, noise: Tensor, sigma: Tensor, clean_latents: Tensor) -> Tensor:
        """The transformer's input at `sigma` in training: every token noised to its own sigma.

        Args:
            noise: [B, N, C], noise of the video tokens.
            sigma: [B] or scalar.
            clean_latents: [B, N, C], what the unknown video tokens are; known tokens keep their own.
        Returns:
            [B, K + N, C].
        """
        video_strength = self.strength[:, self.num_extra :]
        clean = torch.where(video_strength[..., None] > 0, self.clean_latents, clean_latents.to(self.clean_latents))
        tokens = interpolate(clean, noise.to(clean), token_sigmas(sigma, video_strength))
        if self.extra is None:
            return tokens
        extra_sigmas = token_sigmas(sigma, self.extra.strength)
        return torch.cat([interpolate(self.extra.latents, self.extra.noise, extra_sigmas), tokens], dim=1)

    def video_tokens(self, tokens: Tensor) -> Tensor:
        """Drop the extra tokens: [B, K + N, ...] -> [B, N, ...]."""
        return tokens[:, self.num_extra :]


def num_extra_frames(frame_index: int, latent_frames: int, prefix_latent_frames: int | None) -> int:
    """How many of a piece's latent frames become extra tokens.

    Args:
        frame_index: pixel frame at which the piece starts; at 0 it lies in place and nothing is extra, before the clip
            everything is.
        latent_frames: its latent frames.
        prefix_latent_frames: None makes all of them extra; a number makes only that many extra and lets the rest of a
            longer piece lie in place.
    """
    if frame_index == 0:
        return 0
    if prefix_latent_frames is None or frame_index < 0:
        return latent_frames
    return min(latent_frames, prefix_latent_frames)


def arrange(
    known: Sequence[KnownLatents],
    shape: LatentShape,
    strides: Strides,
    frame_rate: float,
    *,
    channels: int,
    batch: int,
    causal: bool = True,
    prefix_latent_frames: int | None = None,
    patch_size: int = 1,
    device: torch.device | str | None = None,
) -> ConditionSet:
    """Lay given material out as tokens.

    Where pieces overlap in place, the stronger one holds (of equals the first).

    Args:
        known: the pieces; may be empty.
        shape: latent size of the clip.
        strides: pixels per latent.
        frame_rate: frames per second.
        channels: latent channels.
        batch: B.
        causal: coordinates of a causal VAE, see `token_coordinates`.
        prefix_latent_frames: see `num_extra_frames`.
        patch_size: latents per token along rows and columns; a token is as strong as its weakest latent.
        device: where the result lies.
    Returns:
        The condition set, in float32.
    Raises:
        ShapeError: a piece is of another size than the clip or reaches past its end.
    """
    clean = torch.zeros(batch, channels, *shape, device=device)
    strength = torch.zeros(batch, 1, *shape, device=device)
    extras: list[KnownTokens] = []
    for piece in known:
        _check_piece(piece, shape, strides, channels)
        count = num_extra_frames(piece.frame_index, piece.latents.shape[2], prefix_latent_frames)
        if count:
            extras.append(_extra_tokens(piece, count, strides, frame_rate, batch, causal, patch_size))
        _place(piece, count, piece.frame_index // strides.temporal, clean, strength)
    grid, pixels = token_grid(shape, patch_size), token_strides(strides, patch_size)
    coordinates = token_coordinates(grid, pixels, frame_rate, causal, batch=batch, device=device)
    token_strength = pack(strength, patch_size).amin(dim=-1)
    extra = _concatenate(extras)
    if extra is not None:
        token_strength = torch.cat([extra.strength, token_strength], dim=1)
        coordinates = torch.cat([extra.coordinates, coordinates], dim=2)
    return ConditionSet(pack(clean, patch_size), token_strength, coordinates, extra, is_empty=not known)


def _place(piece: KnownLatents, skip: int, start: int, clean: Tensor, strength: Tensor) -> None:
    """Write the latent frames of `piece` after the first `skip` into the clip, in place, where they are stronger."""
    frames = piece.latents.shape[2] - skip
    if frames <= 0:
        return
    batch = clean.shape[0]
    here = slice(start + skip, start + skip + frames)
    offered = piece.strength_map(batch)[:, :, skip:].to(strength)
    stronger = offered > strength[:, :, here]
    latents = piece.latents[:, :, skip:].to(clean).expand(batch, -1, -1, -1, -1)
    clean[:, :, here] = torch.where(stronger, latents, clean[:, :, here])
    strength[:, :, here] = torch.where(stronger, offered, strength[:, :, here])


def _extra_tokens(
    piece: KnownLatents, count: int, strides: Strides, frame_rate: float, batch: int, causal: bool, patch_size: int
) -> KnownTokens:
    """The first `count` latent frames of `piece` as tokens; those given in no sample are dropped."""
    latents = piece.latents[:, :, :count].float().expand(batch, -1, -1, -1, -1)
    strength = pack(piece.strength_map(batch)[:, :, :count], patch_size).amin(dim=-1)
    noise = piece.noise
    soft = (strength > 0) & (strength < 1)
    if noise is None and bool(soft.any()):
        raise ShapeError(f"The material at frame {piece.frame_index} has a strength between 0 and 1: give its noise.")
    noise = torch.zeros_like(latents) if noise is None else noise.to(latents).expand_as(latents)
    grid, pixels = token_grid(LatentShape(*latents.shape[2:]), patch_size), token_strides(strides, patch_size)
    coordinates = token_coordinates(grid, pixels, frame_rate, causal, piece.frame_index, batch, latents.device)
    keep = (strength > 0).any(dim=0)
    tokens, noise_tokens = pack(latents, patch_size), pack(noise, patch_size)
    return KnownTokens(tokens[:, keep], coordinates[:, :, keep], strength[:, keep], noise_tokens[:, keep])


def _concatenate(extras: Sequence[KnownTokens]) -> KnownTokens | None:
    if not extras:
        return None
    return KnownTokens(
        torch.cat([extra.latents for extra in extras], dim=1),
        torch.cat([extra.coordinates for extra in extras], dim=2),
        torch.cat([extra.strength for extra in extras], dim=1),
        torch.cat([extra.noise for extra in extras], dim=1),
    )


def _check_piece(piece: KnownLatents, shape: LatentShape, strides: Strides, channels: int) -> None:
    latents = piece.latents
    if latents.ndim != 5 or latents.shape[1] != channels or tuple(latents.shape[3:]) != (shape.height, shape.width):
        raise ShapeError(
            f"Given latents of shape {tuple(latents.shape)} do not fit the clip: "
            f"they must be [B, {channels}, f, {shape.height}, {shape.width}]."
        )
    if piece.frame_index < 0 and (piece.frame_index != REFERENCE_FRAME or latents.shape[2] > 1):
        raise ShapeError(
            f"Material of {latents.shape[2]} latent frames at frame_index={piece.frame_index} lies before the clip: "
            f"use 0 or more, or {REFERENCE_FRAME} for a reference of one."
        )
    last = piece.frame_index + (latents.shape[2] - 1) * strides.temporal
    end = (shape.frames - 1) * strides.temporal
    if last > end:
        raise ShapeError(f"Material at frame_index={piece.frame_index} reaches frame {last}, past the last one, {end}.")
