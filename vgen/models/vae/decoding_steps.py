"""The decoder cut into single blocks, so that a clip is worked up in pieces of about one size at every resolution.

Where a clip is small, in the first stages, all of it is one piece. Where it is large, few frames are: no stage then
holds a clip of its resolution, and still no piece is too small to be worth a call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
from torch import Tensor

from vgen.models.vae.blocks import Generators
from vgen.models.vae.streaming import FrameStream, StreamStage

if TYPE_CHECKING:
    from vgen.models.vae.decoder import Decoder

_ON_CPU: Final = 2**21
_ELSEWHERE: Final = 2**25


def piece_on(device: str) -> int:
    """Numbers of the largest tensor that are worked on at a time, by the type of device.

    On a CPU measured: smaller pieces are slower, larger ones no faster. Elsewhere chosen so that a call has
    enough to do for any GPU; not measured.
    """
    return _ON_CPU if device == "cpu" else _ELSEWHERE


class Step(NamedTuple):
    """One block of a decoder.

    Attributes:
        run: [B, C, F, H, W] and the stream's memory to the same of the next block.
        width: numbers of its largest tensor for each position of what comes in.
        growth: frames, rows and columns that a position of what comes in becomes.
    """

    run: Callable[[Tensor, FrameStream | None], Tensor]
    width: int
    growth: tuple[int, int, int] = (1, 1, 1)


def decoding_steps(decoder: Decoder, timesteps: Tensor | None, generator: Generators) -> Iterator[Step]:
    """The blocks of a decoder in order.

    Args:
        decoder: the model.
        timesteps: [B], scaled; with timestep conditioning.
        generator: where injected noise is drawn from.
    """
    conv = decoder.conv_in.conv
    yield Step(decoder.from_latents, max(conv.in_channels, conv.out_channels))
    for block in (decoder.mid_block, *decoder.up_blocks):
        before = getattr(block, "conv_in", None)
        if before is not None:
            width = max(before.conv1.conv.in_channels, before.conv1.conv.out_channels)
            yield Step(partial(_resnet, before), width)
        for upsampler in getattr(block, "upsamplers", None) or ():
            yield Step(upsampler, upsampler.conv.conv.out_channels, upsampler.stride)
        embedding = _embedding(block, timesteps)
        for resnet in block.resnets:
            run = partial(_with_noise, block, resnet, embedding, generator)
            yield Step(run, resnet.conv1.conv.out_channels)
    conv = decoder.conv_out.conv
    yield Step(partial(decoder.to_pixels, timesteps), max(conv.in_channels, conv.out_channels))


def _resnet(resnet: Any, hidden_states: Tensor, stream: FrameStream | None) -> Tensor:
    return resnet(hidden_states, stream=stream)


def _with_noise(
    block: Any,
    resnet: Any,
    embedding: Callable[[torch.dtype], Tensor | None],
    generator: Generators,
    hidden_states: Tensor,
    stream: FrameStream | None,
) -> Tensor:
    return block.run_resnets([resnet], hidden_states, embedding(hidden_states.dtype), generator, stream)


def _embedding(block: Any, timesteps: Tensor | None) -> Callable[[torch.dtype], Tensor | None]:
    """The block's embedding of its timesteps, computed once for all pieces."""

    @cache
    def of(dtype: torch.dtype) -> Tensor | None:
        return block.time_embedder(timesteps, dtype) if block.time_embedder is not None else None

    return of


def stages_of(steps: Iterator[Step], latents: Tensor, numbers: int) -> Iterator[StreamStage]:
    """Steps with the frames that each takes at a time.

    Args:
        steps: of `decoding_steps`.
        latents: [B, C, f, h, w], the whole pictures, though each of several processes may work on a part of them.
        numbers: of the largest tensor that a step may work on.
    """
    positions = latents.shape[0] * latents.shape[3] * latents.shape[4]
    for step in steps:
        yield StreamStage(step.run, max(1, numbers // (positions * step.width)))
        positions *= step.growth[1] * step.growth[2]


def numbers_a_frame(decoder: Decoder, latents: Tensor) -> int:
    """Numbers of the largest tensor for each frame of the finished clip; arguments as for `stages_of`."""
    positions, stride = latents.shape[0] * latents.shape[3] * latents.shape[4], 1
    found: list[tuple[int, int]] = []
    for step in decoding_steps(decoder, None, None):
        found.append((positions * step.width, stride))
        positions *= step.growth[1] * step.growth[2]
        stride *= step.growth[0]
    return max(numbers * before // stride for numbers, before in found)
