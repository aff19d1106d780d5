"""Encoding and decoding in pieces: along time exactly, in space by overlapping tiles that are blended.

Memory then grows neither with the length of a clip nor with the size of its pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from vgen.errors import ShapeError


class TiledCoding:
    """Mixin of CausalVideoVAE: `_encode` and `_decode` of one batch, whole or in pieces.

    Tiles overlap by (tile size - stride) pixels and are blended linearly there, as diffusers does. Pieces in time do
    not overlap: the network remembers what it needs between them (see streaming), so nothing is shifted or blended.
    """

    def _init_tiling(self) -> None:
        self.use_slicing = self.use_tiling = False
        self.tile_sample_min_height = self.tile_sample_min_width = 512
        self.tile_sample_stride_height = self.tile_sample_stride_width = 448
        self.use_framewise_encoding = self.use_framewise_decoding = False
        self.tile_sample_stride_num_frames = self.strides.temporal

    def enable_streaming(self, num_frames: int | None = None) -> None:
        """Encode and decode clips piece by piece in time, with the result of the whole.

        Args:
            num_frames: pixel frames worked on at a time, a multiple of the temporal stride; None: one stride.
        Raises:
            ShapeError: not a multiple.
        """
        stride = self.strides.temporal
        num_frames = stride if num_frames is None else num_frames
        if num_frames < stride or num_frames % stride:
            nearest = max(num_frames // stride, 1) * stride
            raise ShapeError(
                f"num_frames={num_frames} must be a multiple of the model's temporal stride {stride}; use {nearest}."
            )
        self.tile_sample_stride_num_frames = num_frames
        self.use_framewise_encoding = self.use_framewise_decoding = True

    def disable_streaming(self) -> None:
        """Encode and decode all frames at once."""
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

    def _encode(self, video: Tensor) -> Tensor:
        """[B, 3, F, H, W] -> [B, 2 * C, f, h, w]."""
        tile = (self.tile_sample_min_height, self.tile_sample_min_width)
        step = (self.tile_sample_stride_height, self.tile_sample_stride_width)
        scales = tuple(1 / stride for stride in (self.strides.height, self.strides.width))
        if not self.use_framewise_encoding:
            return torch.cat(list(self._tiled(lambda part: iter([self.encoder(part)]), video, tile, step, scales)), 2)
        frames = self.tile_sample_stride_num_frames

        def encode(part: Tensor) -> Iterator[Tensor]:
            rest = part[:, :, 1:].split(frames, dim=2) if part.shape[2] > 1 else ()
            return self.encoder.in_pieces([part[:, :, :1], *rest], frames)

        return torch.cat(list(self._tiled(encode, video, tile, step, scales)), dim=2)

    def _decode(self, latents: Tensor, temb: Tensor | None, generator: object) -> Tensor:
        """[B, C, f, h, w] -> [B, 3, F, H, W]."""
        return torch.cat(list(self._decoded_pieces(latents, temb, generator)), dim=2)

    def _decoded_pieces(self, latents: Tensor, temb: Tensor | None, generator: object) -> Iterator[Tensor]:
        """[B, C, f, h, w] -> [B, 3, F, H, W], one after the other in time; one where decoding is not framewise."""
        tile = (
            self.tile_sample_min_height // self.strides.height,
            self.tile_sample_min_width // self.strides.width,
        )
        step = (
            self.tile_sample_stride_height // self.strides.height,
            self.tile_sample_stride_width // self.strides.width,
        )
        scales = (self.strides.height, self.strides.width)
        frames = self.tile_sample_stride_num_frames // self.strides.temporal

        def decode(part: Tensor) -> Iterator[Tensor]:
            if not self.use_framewise_decoding:
                return iter([self.decoder(part, temb, generator)])
            return self.decoder.in_pieces(part.split(frames, dim=2), temb, generator, part.shape[0], frames)

        return self._tiled(decode, latents, tile, step, scales)

    def _tiled(
        self,
        code: Callable[[Tensor], Iterator[Tensor]],
        whole: Tensor,
        tile: tuple[int, int],
        step: tuple[int, int],
        scales: tuple[float, float],
    ) -> Iterator[Tensor]:
        """`code` applied to all of `whole`, or to its tiles where it is larger than one; empty pieces left out."""
        if not self.use_tiling or (whole.shape[3] <= tile[0] and whole.shape[4] <= tile[1]):
            pieces = code(whole)
        else:
            pieces = _by_tiles(code, whole, tile, step, scales)
        return (piece for piece in pieces if piece.shape[2])


def _by_tiles(
    code: Callable[[Tensor], Iterator[Tensor]],
    whole: Tensor,
    tile: tuple[int, int],
    step: tuple[int, int],
    scales: tuple[float, float],
) -> Iterator[Tensor]:
    """Pieces in time of overlapping tiles of `whole` [B, C, F, H, W], blended where the tiles overlap.

    All tiles go through time side by side. `tile` and `step` count positions of `whole`; a position of `whole` becomes
    `scales` positions of the result.
    """
    out_step = tuple(round(n * scale) for n, scale in zip(step, scales, strict=True))
    overlap = tuple(round(n * scale) - s for n, scale, s in zip(tile, scales, out_step, strict=True))
    grid = [
        [code(whole[:, :, :, top : top + tile[0], left : left + tile[1]]) for left in range(0, whole.shape[4], step[1])]
        for top in range(0, whole.shape[3], step[0])
    ]
    for first in grid[0][0]:
        rows = [
            [first if (i, j) == (0, 0) else next(pieces) for j, pieces in enumerate(row)] for i, row in enumerate(grid)
        ]
        yield _blend_grid(rows, (out_step[0], out_step[1]), (overlap[0], overlap[1]))


def _blend_grid(rows: list[list[Tensor]], step: tuple[int, int], overlap: tuple[int, int]) -> Tensor:
    """One picture (of some frames) from the rows of its overlapping tiles."""
    strips: list[Tensor] = []
    above: list[Tensor] | None = None
    for row in rows:
        blended: list[Tensor] = []
        for index, part in enumerate(row):
            if above is not None:
                part = _blend(above[index], part, overlap[0], 3)
            if index:
                part = _blend(blended[-1], part, overlap[1], 4)
            blended.append(part)
        above = blended
        strips.append(torch.cat([part[:, :, :, : step[0], : step[1]] for part in blended], dim=4))
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
