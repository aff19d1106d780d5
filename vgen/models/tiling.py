"""Encoding and decoding in overlapping spatial tiles, so that memory does not grow with the picture."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vgen.errors import RequestError, ShapeError


class TiledCoding:
    """Mixin of CausalVideoVAE: `_encode` and `_decode` of one batch, whole or by tiles.

    Tiles overlap by (tile size - stride) pixels and are blended linearly there, as diffusers does.
    """

    def _init_tiling(self) -> None:
        self.use_slicing = self.use_tiling = False
        self.tile_sample_min_height = self.tile_sample_min_width = 512
        self.tile_sample_stride_height = self.tile_sample_stride_width = 448
        self.use_framewise_encoding = self.use_framewise_decoding = False

    def enable_tiling(
        self,
        tile_sample_min_height: int | None = None,
        tile_sample_min_width: int | None = None,
        tile_sample_stride_height: int | None = None,
        tile_sample_stride_width: int | None = None,
    ) -> None:
        """Encode and decode pictures larger than a tile by overlapping tiles.

        Args:
            tile_sample_min_height, tile_sample_min_width: pixels of a tile; None keeps the value.
            tile_sample_stride_height, tile_sample_stride_width: pixels from tile to tile; None keeps the value, or
                takes 7/8 of the tile where that is smaller.
        Raises:
            ShapeError: a size that does not divide by the model's stride, or a stride larger than its tile.
        """
        height = tile_sample_min_height or self.tile_sample_min_height
        width = tile_sample_min_width or self.tile_sample_min_width
        step_height = tile_sample_stride_height or self._step(height, self.strides.height, "height")
        step_width = tile_sample_stride_width or self._step(width, self.strides.width, "width")
        for axis, tile, step, stride in (
            ("height", height, step_height, self.strides.height),
            ("width", width, step_width, self.strides.width),
        ):
            for field, value in ((f"tile_sample_min_{axis}", tile), (f"tile_sample_stride_{axis}", step)):
                if value < stride or value % stride:
                    nearest = max(value // stride, 1) * stride
                    raise ShapeError(f"{field}={value} must divide by the model's stride {stride}; use {nearest}.")
            if step > tile:
                raise ShapeError(f"tile_sample_stride_{axis}={step} is larger than its tile; use at most {tile}.")
        self.use_tiling = True
        self.tile_sample_min_height, self.tile_sample_min_width = height, width
        self.tile_sample_stride_height, self.tile_sample_stride_width = step_height, step_width

    def _step(self, tile: int, stride: int, axis: str) -> int:
        current = getattr(self, f"tile_sample_stride_{axis}")
        return current if current <= tile else max(tile * 7 // 8 // stride, 1) * stride

    def disable_tiling(self) -> None:
        """Encode and decode whole pictures."""
        self.use_tiling = False

    def _check_framewise(self) -> None:
        if self.use_framewise_encoding or self.use_framewise_decoding:
            raise RequestError(
                "use_framewise_encoding / use_framewise_decoding: coding by groups of frames is not offered by this "
                "VAE; set both to False and use enable_tiling() to save memory."
            )

    def _encode(self, video: Tensor) -> Tensor:
        """[B, 3, F, H, W] -> [B, 2 * C, f, h, w]."""
        self._check_framewise()
        tile = (self.tile_sample_min_height, self.tile_sample_min_width)
        if not self.use_tiling or (video.shape[3] <= tile[0] and video.shape[4] <= tile[1]):
            return self.encoder(video)
        step = (self.tile_sample_stride_height, self.tile_sample_stride_width)
        strides = (self.strides.height, self.strides.width)
        out_tile, out_step = (tuple(n // s for n, s in zip(size, strides, strict=True)) for size in (tile, step))
        return _by_tiles(self.encoder, video, tile, step, out_tile, out_step)

    def _decode(self, latents: Tensor, temb: Tensor | None, generator: object) -> Tensor:
        """[B, C, f, h, w] -> [B, 3, F, H, W]."""
        self._check_framewise()
        out_tile = (self.tile_sample_min_height, self.tile_sample_min_width)
        out_step = (self.tile_sample_stride_height, self.tile_sample_stride_width)
        strides = (self.strides.height, self.strides.width)
        tile, step = (tuple(n // s for n, s in zip(size, strides, strict=True)) for size in (out_tile, out_step))
        if not self.use_tiling or (latents.shape[3] <= tile[0] and latents.shape[4] <= tile[1]):
            return self.decoder(latents, temb, generator)
        return _by_tiles(lambda part: self.decoder(part, temb, generator), latents, tile, step, out_tile, out_step)


def _by_tiles(
    code: Callable[[Tensor], Tensor],
    whole: Tensor,
    tile: tuple[int, int],
    step: tuple[int, int],
    out_tile: tuple[int, int],
    out_step: tuple[int, int],
) -> Tensor:
    """`code` applied to overlapping tiles of `whole` [B, C, F, H, W], blended where they overlap.

    `tile` and `step` count positions of `whole`; `out_tile` and `out_step` the same lengths in the result.
    """
    overlap = (out_tile[0] - out_step[0], out_tile[1] - out_step[1])
    strips, above = [], None
    for top in range(0, whole.shape[3], step[0]):
        row = [
            code(whole[:, :, :, top : top + tile[0], left : left + tile[1]])
            for left in range(0, whole.shape[4], step[1])
        ]
        blended: list[Tensor] = []
        for index, part in enumerate(row):
            if above is not None:
                part = _blend(above[index], part, overlap[0], 3)
            if index:
                part = _blend(blended[-1], part, overlap[1], 4)
            blended.append(part)
        above = blended
        strips.append(torch.cat([part[:, :, :, : out_step[0], : out_step[1]] for part in blended], dim=4))
    return torch.cat(strips, dim=3)


def _blend(before: Tensor, after: Tensor, overlap: int, dim: int) -> Tensor:
    """`after`, fading in over its first `overlap` positions from the matching ones of `before`."""
    overlap = min(overlap, before.shape[dim], after.shape[dim])
    if overlap == 0:
        return after
    shape = [1] * after.ndim
    shape[dim] = overlap
    weight = (torch.arange(overlap, device=after.device, dtype=after.dtype) / overlap).view(shape)
    tail = before.narrow(dim, before.shape[dim] - overlap, overlap)
    head, rest = after.split([overlap, after.shape[dim] - overlap], dim=dim)
    return torch.cat([tail * (1 - weight) + head * weight, rest], dim=dim)
