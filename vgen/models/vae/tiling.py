"""Encoding and decoding in pieces: along time exactly, in space by overlapping tiles that are blended.

Memory then grows neither with the length of a clip nor with the size of its pictures. Decoding is always in pieces
along time where nobody wants gradients, see vgen.models.vae.decoder: it takes no longer than decoding a clip whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from vgen.errors import ShapeError
from vgen.models.fusing import plain
from vgen.models.vae.blocks import Generators
from vgen.models.vae.decoder import Decoder, piece_on
from vgen.models.vae.encoder import Encoder
from vgen.types import Strides

_SMALLER = 2
"""How many times smaller pieces are where a clip is streamed; yet smaller ones would save little and cost time."""


class TiledCoding:
    """Mixin of CausalVideoVAE: `_encode` and `_decode` of one batch, whole or in pieces.

    Tiles overlap by (tile size - stride) pixels and are blended linearly there, as diffusers does. Pieces in time do
    not overlap: the network remembers what it needs between them (see streaming), so nothing is shifted or blended.
    """

    strides: Strides
    encoder: Encoder
    decoder: Decoder

    def _init_tiling(self) -> None:
        self.use_slicing = self.use_tiling = False
        self.tile_sample_min_height = self.tile_sample_min_width = 512
        self.tile_sample_stride_height = self.tile_sample_stride_width = 448
        self.use_framewise_encoding = self.use_framewise_decoding = False
        self.tile_sample_stride_num_frames = self.strides.temporal
        self.decoding_piece: int | None = None

    def enable_streaming(self, num_frames: int | None = None) -> None:
        """Encode clips piece by piece in time, and decode them in smaller pieces than usual; the result is the same.

        Args:
            num_frames: most pixel frames worked on at a time, a multiple of the temporal stride; None: one stride.
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
        """Encode all frames at once, and decode in pieces of the usual size."""
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
        scales = (1 / self.strides.height, 1 / self.strides.width)
        frames = self.tile_sample_stride_num_frames

        def encode(part: Tensor) -> Iterator[Tensor]:
            if not self.use_framewise_encoding:
                return iter([self.encoder(part)])
            rest = part[:, :, 1:].split(frames, dim=2) if part.shape[2] > 1 else ()
            return self.encoder.in_pieces([part[:, :, :1], *rest], frames)

        latent_frames = 1 + (video.shape[2] - 1) // self.strides.temporal
        return _joined(self._tiled(encode, video, tile, step, scales, latent_frames), latent_frames)

    def _decode(self, latents: Tensor, temb: Tensor | None, generator: Generators) -> Tensor:
        """[B, C, f, h, w] -> [B, 3, F, H, W]."""
        return _joined(self._decoded_pieces(latents, temb, generator), self._pixel_frames(latents))

    def _pixel_frames(self, latents: Tensor) -> int:
        return 1 + (latents.shape[2] - 1) * self.strides.temporal

    def _decoded_pieces(self, latents: Tensor, temb: Tensor | None, generator: Generators) -> Iterator[Tensor]:
        """[B, C, f, h, w] -> [B, 3, F, H, W], one after the other in time; one only if not framewise or in tiles."""
        tile = (
            self.tile_sample_min_height // self.strides.height,
            self.tile_sample_min_width // self.strides.width,
        )
        step = (
            self.tile_sample_stride_height // self.strides.height,
            self.tile_sample_stride_width // self.strides.width,
        )
        scales = (self.strides.height, self.strides.width)

        def decode(part: Tensor) -> Iterator[Tensor]:
            numbers = self.decoding_piece or piece_on(part.device.type)
            # What hooks into a stage (sharding, offloading) puts its weights in place, and pieces pass stages by.
            stages = (self.decoder, self.decoder.mid_block, *self.decoder.up_blocks)
            if not all(plain(stage) for stage in stages) or (
                torch.is_grad_enabled() and not self.use_framewise_decoding
            ):
                return iter([self.decoder(part, temb, generator)])
            if self.use_framewise_decoding:
                frames = self.tile_sample_stride_num_frames * self.decoder.numbers_per_frame(part)
                numbers = min(numbers // _SMALLER, frames)
            return self.decoder.in_pieces(part, temb, generator, numbers)

        return self._tiled(decode, latents, tile, step, scales, self._pixel_frames(latents))

    def _tiled(
        self,
        code: Callable[[Tensor], Iterator[Tensor]],
        whole: Tensor,
        tile: tuple[int, int],
        step: tuple[int, int],
        scales: tuple[float, float],
        frames: int,
    ) -> Iterator[Tensor]:
        """`code` applied to `whole`, in pieces of time; by tiles, in one piece of `frames`, if it is larger."""
        if not self.use_tiling or (whole.shape[3] <= tile[0] and whole.shape[4] <= tile[1]):
            return filter(_has_frames, code(whole))
        return iter([_by_tiles(code, whole, tile, step, scales, frames)])


def _by_tiles(
    code: Callable[[Tensor], Iterator[Tensor]],
    whole: Tensor,
    tile: tuple[int, int],
    step: tuple[int, int],
    scales: tuple[float, float],
    frames: int,
) -> Tensor:
    """Overlapping tiles of `whole` [B, C, F, H, W], coded one after the other and blended where they overlap."""
    # Each tile goes through all of time before the next begins, so that a stream's memory is that of one tile; only the
    # result and the tiles' overlapping edges are kept. `tile` and `step` count positions of `whole`.
    out_step = tuple(round(n * scale) for n, scale in zip(step, scales, strict=True))
    overlap = tuple(round(n * scale) - s for n, scale, s in zip(tile, scales, out_step, strict=True))
    size = [round(n * scale) for n, scale in zip(whole.shape[3:], scales, strict=True)]
    result: Tensor | None = None
    edges_above: list[Tensor] = []
    for row, top in enumerate(range(0, whole.shape[3], step[0])):
        edges: list[Tensor] = []
        left_edge: Tensor | None = None
        for column, left in enumerate(range(0, whole.shape[4], step[1])):
            part = _joined(code(whole[:, :, :, top : top + tile[0], left : left + tile[1]]), frames)
            if row:
                part = _blend(edges_above[column], part, overlap[0], 3)
            if left_edge is not None:
                part = _blend(left_edge, part, overlap[1], 4)
            edges.append(_edge(part, overlap[0], 3))
            left_edge = _edge(part, overlap[1], 4)
            if result is None:
                result = part.new_empty(*part.shape[:3], *size)
            shown = part[:, :, :, : out_step[0], : out_step[1]]
            y, x = row * out_step[0], column * out_step[1]
            result[:, :, :, y : y + shown.shape[3], x : x + shown.shape[4]] = shown
        edges_above = edges
    assert result is not None
    return result


def _has_frames(piece: Tensor) -> bool:
    return piece.shape[2] > 0


def _joined(pieces: Iterator[Tensor], frames: int) -> Tensor:
    """Pieces in time as one clip of `frames`; nothing is ever held twice."""
    clip: Tensor | None = None
    done = 0
    for piece in filter(_has_frames, pieces):  # an empty one may be of a stripe, see engine.vae_parallel
        if piece.shape[2] == frames:
            return piece
        if clip is None:
            clip = piece.new_empty(*piece.shape[:2], frames, *piece.shape[3:])
        clip[:, :, done : done + piece.shape[2]] = piece
        done += piece.shape[2]
        del piece  # before the next one is made
    assert clip is not None
    assert done == frames
    return clip


def _edge(part: Tensor, width: int, dim: int) -> Tensor:
    """A copy of the last `width` positions, so that the rest of `part` can be freed."""
    width = min(width, part.shape[dim])
    return part.narrow(dim, part.shape[dim] - width, width).clone()


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
