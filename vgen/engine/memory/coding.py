"""How much memory coding a clip takes, known beforehand by a rehearsal, and the way of coding that fits a budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import torch

from vgen.engine.device import free_bytes
from vgen.engine.memory.rehearsal import LiveBytes, rehearse
from vgen.errors import OutOfMemoryError, bytes_text, counted
from vgen.models import CausalVideoVAE
from vgen.models.vae.decoder import piece_on
from vgen.types import LatentShape, VideoShape

WORKSPACE: Final = 1.3
"""What convolution libraries take on top of the tensors, as a factor."""
_REHEARSED_FRAMES: Final = 24
"""Latent frames after which a stream's memory has stopped growing."""
_SMALLEST_TILE: Final = 4
"""Latents; smaller tiles are mostly overlap."""

Peak = Callable[..., int]
"""`decoding_peak` or `encoding_peak`."""


class CodingPlan(NamedTuple):
    """A way of coding: pixel frames at a time (None: all) and pixels of a tile's sides (None: whole pictures)."""

    num_frames: int | None
    tile: tuple[int, int] | None
    peak_bytes: int

    def apply(self, vae: CausalVideoVAE) -> None:
        """Set a VAE up accordingly."""
        vae.disable_streaming()
        vae.disable_tiling()
        if self.num_frames is not None:
            vae.enable_streaming(self.num_frames)
        if self.tile is not None:
            overlap = [_overlap(side, stride) for side, stride in zip(self.tile, vae.strides[1:], strict=True)]
            vae.enable_tiling(*self.tile, *(side - cut for side, cut in zip(self.tile, overlap, strict=True)))


def decoding_peak(
    vae: CausalVideoVAE,
    shape: LatentShape,
    batch: int = 1,
    *,
    plan: CodingPlan | None = None,
    device: str | None = None,
    clip: bool = True,
) -> int:
    """Most bytes alive while a clip is decoded, the finished clip included, weights not.

    Args:
        vae: the model; only its configuration and dtype matter.
        shape: of the latents.
        batch: clips decoded together.
        plan: the way of coding; None: as `vae` is set up.
        device: type of the one that it will work on; None: the model's.
        clip: whether the clip is put together, in float32, where it is decoded; else its pieces are sent away.
    Returns:
        Bytes, the workspace of convolutions included.
    """
    double = _double(vae, plan, device)
    tile, edges = _largest_tile(double, shape)
    frames = min(shape.frames, _REHEARSED_FRAMES) if double.use_framewise_decoding else shape.frames
    latents = torch.empty(batch, double.config.latent_channels, frames, *tile, device="meta", dtype=vae.dtype)
    timestep = torch.empty(batch, device="meta", dtype=vae.dtype) if double.config.timestep_conditioning else None
    first = count = 0
    with torch.no_grad(), LiveBytes() as live:
        live.overlook(double, latents)
        for piece in double.decode_in_pieces(latents, timestep):
            if count == 0:
                first, live.peak = live.peak, live.now()
            count += 1
            del piece
    # What becomes of the pieces: they are joined into a clip; a tile's clip is blended into that of the whole picture.
    pixel = batch * 3 * VideoShape.of_latent(shape, vae.strides).num_frames * 4
    pixel *= vae.strides.height * vae.strides.width
    before, after = int(first * WORKSPACE), int(live.peak * WORKSPACE)  # of that clip
    if tile == shape[1:]:
        return max(before, after + (pixel * tile[0] * tile[1] if clip and count > 1 else 0))
    joined = pixel * vae.dtype.itemsize // 4
    coding = max(before, after + joined * tile[0] * tile[1])
    return joined * (shape.height * shape.width + edges) + max(coding, 3 * joined * tile[0] * tile[1])


def encoding_peak(
    vae: CausalVideoVAE,
    shape: LatentShape,
    batch: int = 1,
    *,
    plan: CodingPlan | None = None,
    device: str | None = None,
) -> int:
    """Most bytes alive while a clip is encoded, its latents included; its pixels, which are there already, are not.

    Args:
        vae: the model; only its configuration and dtype matter.
        shape: of the latents to make.
        batch: clips encoded together.
        plan: the way of coding; None: as `vae` is set up.
        device: see `decoding_peak`.
    Returns:
        Bytes, the workspace of convolutions included.
    """
    double = _double(vae, plan, device)
    tile, _ = _largest_tile(double, shape)
    frames = min(shape.frames, _REHEARSED_FRAMES) if double.use_framewise_encoding else shape.frames
    video = torch.empty(
        batch, 3, *VideoShape.of_latent(LatentShape(frames, *tile), vae.strides), device="meta", dtype=vae.dtype
    )
    peak = rehearse(lambda: double.encode(video), double, video)
    latents = batch * 2 * double.config.latent_channels * shape.frames * shape.height * shape.width * vae.dtype.itemsize
    return int(peak * WORKSPACE) + (0 if tile == shape[1:] else 2 * latents)


def plan_coding(peak: Peak, vae: CausalVideoVAE, shape: LatentShape, batch: int, budget: int) -> CodingPlan:
    """The way of coding that changes least and fits a budget: whole, then streamed (exact), then tiled (blended).

    Args:
        peak: `decoding_peak` or `encoding_peak`.
        vae: the model.
        shape: of the latents.
        batch: clips coded together.
        budget: bytes for everything but the weights; given pixels that are encoded do not count.
    Raises:
        OutOfMemoryError: not even the smallest tiles fit; says what they need.
    """
    least = 0
    for frames, tile in ways_of_coding(vae, shape):
        plan = CodingPlan(frames, tile, 0)
        needed = peak(vae, shape, batch, plan=plan)
        if needed <= budget:
            return plan._replace(peak_bytes=needed)
        least = min(needed, least or needed)
    verb = "decode" if peak is decoding_peak else "encode"
    error = OutOfMemoryError(
        f"vae_memory={bytes_text(budget)} is too little to {verb} {shape.frames} x {shape.height} x {shape.width} "
        f"latents of {counted(batch, 'clip')}: the least is {bytes_text(least)}; give that much, or fewer clips."
    )
    error.least = least
    raise error


@contextmanager
def coding_within(
    peak: Peak, vae: CausalVideoVAE, shape: LatentShape, batch: int, budget: int | None
) -> Iterator[None]:
    """Inside, `vae` codes within a budget; afterwards it is set up as before.

    Args:
        peak, vae, shape, batch: see `plan_coding`.
        budget: bytes; None: four fifths of what is free on its device now.
    Raises:
        OutOfMemoryError: nothing fits.
    """
    plan = plan_coding(peak, vae, shape, batch, free_bytes(vae.device) * 4 // 5 if budget is None else budget)
    before = _way_of(vae)
    plan.apply(vae)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(vae, name, value)


def _way_of(vae: CausalVideoVAE) -> dict[str, Any]:
    return {name: value for name, value in vars(vae).items() if name.startswith(("use_", "tile_"))}


def _double(vae: CausalVideoVAE, plan: CodingPlan | None, device: str | None = None) -> CausalVideoVAE:
    """A model without content that codes as `vae` does on a device, or by a plan."""
    with torch.device("meta"):
        double = CausalVideoVAE.from_config(vae.config).eval()
    torch.nn.Module.to(double, vae.dtype)  # diffusers' own `to` warns about casting, which does not matter here
    for name, value in _way_of(vae).items():
        setattr(double, name, value)
    double.decoding_piece = vae.decoding_piece or piece_on(device or vae.device.type)
    if plan is not None:
        plan.apply(double)
    return double


def ways_of_coding(vae: CausalVideoVAE, shape: LatentShape) -> Iterator[tuple[int | None, tuple[int, int] | None]]:
    """Pixel frames at a time and pixels of a tile, the way that changes least first; see `CodingPlan`."""
    yield None, None
    stride, rows, columns = vae.strides
    yield stride, None
    height, width = shape.height, shape.width
    while max(height, width) > _SMALLEST_TILE:
        if height >= width:
            height = max(_SMALLEST_TILE, (height + 1) // 2)
        else:
            width = max(_SMALLEST_TILE, (width + 1) // 2)
        yield stride, (height * rows, width * columns)


def _largest_tile(vae: CausalVideoVAE, shape: LatentShape) -> tuple[tuple[int, int], int]:
    """Rows and columns of the largest tile, and the size of the edges that wait to be blended, all in latents."""
    if not vae.use_tiling:
        return (shape.height, shape.width), 0
    height, width = (getattr(vae, f"tile_sample_min_{axis}") for axis in ("height", "width"))
    rows, columns = height // vae.strides.height, width // vae.strides.width
    lower = rows - vae.tile_sample_stride_height // vae.strides.height
    right = columns - vae.tile_sample_stride_width // vae.strides.width
    tile = (min(shape.height, rows), min(shape.width, columns))
    across = 2 * shape.width * columns // max(columns - right, 1)  # two rows of tiles, their overlap counted twice
    return tile, lower * across + right * tile[0]


def _overlap(side: int, stride: int) -> int:
    """A quarter of a tile, at least one latent, at most the eight that public pipelines overlap by."""
    return min(max(side // 4 // stride, 1), 8) * stride
