"""Coding a clip piece by piece in time with the result of the whole: what each layer remembers between the pieces.

A layer that looks back keeps the last frames it has seen. One that looks ahead returns its frames late, by as many
as it looks ahead, and what runs next to it (a residual path) is held back to the same frame. The last piece lets go of
what is still held. So nothing is computed twice, nothing is blended, and no frame is shifted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import itemgetter
from typing import NamedTuple

import torch
from torch import Tensor, nn

FRAMES = 2
"""The axis of frames in [B, C, F, H, W]."""


class FrameStream:
    """The memory of one pass over one clip; layers store in it under themselves (and a name, if they need several).

    Attributes:
        last: the piece under way is the clip's last.
    """

    def __init__(self) -> None:
        self.last = False
        self._kept: dict[tuple[nn.Module, str], Tensor] = {}

    def has(self, layer: nn.Module, name: str = "") -> bool:
        """Whether something is kept for a layer."""
        return (layer, name) in self._kept

    def pop(self, layer: nn.Module, name: str = "") -> Tensor | None:
        """What was kept for a layer, or None; the memory is emptied."""
        return self._kept.pop((layer, name), None)

    def join(self, layer: nn.Module, frames: Tensor, name: str = "") -> Tensor:
        """What was kept for a layer, followed by `frames`; both [B, C, F, H, W]. The memory is emptied."""
        kept = self.pop(layer, name)
        return frames if kept is None else torch.cat([kept, frames], dim=FRAMES)

    def keep(self, layer: nn.Module, frames: Tensor, name: str = "") -> None:
        """Remember a copy of `frames` (possibly none) for the next piece: what they are a part of can be freed."""
        self._kept[(layer, name)] = frames.clone()

    def once(self, layer: nn.Module, make: Callable[[], Tensor | None], name: str) -> Tensor | None:
        """A tensor made at the first piece and used for all."""
        if (layer, name) not in self._kept:
            tensor = make()
            if tensor is None:
                return None
            self._kept[(layer, name)] = tensor
        return self._kept[(layer, name)]


def take(stream: FrameStream | None, layer: nn.Module, frames: Tensor, count: int, name: str = "") -> Tensor:
    """The next `count` frames of a path that runs next to a slower one; the rest waits for the next piece.

    Args:
        stream: None where the clip is coded whole: then `frames` are all there are.
        layer, name: whose memory.
        frames: [B, C, F, H, W], new ones.
        count: how many the slower path has returned.
    """
    if stream is None:
        return frames
    joined = stream.join(layer, frames, name)
    stream.keep(layer, joined[:, :, count:], name)
    return joined[:, :, :count]


def add_beside(stream: FrameStream | None, layer: nn.Module, slower: Tensor, frames: Tensor) -> Tensor:
    """`slower` plus the same frames of a path that runs next to it (see `take`), in place if nobody wants gradients."""
    count = slower.shape[FRAMES]
    if torch.is_grad_enabled():
        return slower + take(stream, layer, frames, count)
    if stream is None:
        return slower.add_(frames)
    done, waiting = 0, []
    for part in (stream.pop(layer), frames):
        if part is not None:
            now = min(part.shape[FRAMES], count - done)
            slower.narrow(FRAMES, done, now).add_(part.narrow(FRAMES, 0, now))
            waiting.append(part.narrow(FRAMES, now, part.shape[FRAMES] - now))
            done += now
    stream.keep(layer, waiting[0] if len(waiting) == 1 else torch.cat(waiting, dim=FRAMES))
    return slower


def begins(stream: FrameStream | None, layer: nn.Module, frames: Tensor) -> bool:
    """Whether `frames` [B, C, F, H, W] hold the clip's first frame, as far as `layer` has seen the clip."""
    if stream is None:
        return True
    if frames.shape[FRAMES] == 0 or stream.has(layer, "begun"):
        return False
    stream.keep(layer, frames[:, :, :0], "begun")
    return True


class StreamStage(NamedTuple):
    """A part of a network that a stream goes through, and about how many frames it takes at a time."""

    run: Callable[[Tensor, FrameStream | None], Tensor]
    frames: int


def run_in_pieces(stages: Sequence[StreamStage], pieces: Iterable[Tensor]) -> Iterator[Tensor]:
    """Send a clip through `stages` piece by piece.

    Every stage has a memory of its own, and takes no more than half as many frames again at a time as it says: what the
    stages before it let go of at the clip's end then never meets at full resolution all at once. A piece is freed as
    soon as the next stage has worked it up. A stage that gets the whole clip at once gets no stream.

    Args:
        stages: in order.
        pieces: [B, C, F, H, W] each, the clip cut along its frames.
    Returns:
        The results, piece by piece; some may have no frames.
    """
    marked = _marked(pieces)
    for stage in stages:
        marked = _through(stage, marked)
    return map(itemgetter(0), marked)


def _marked(pieces: Iterable[Tensor]) -> Iterator[tuple[Tensor, bool]]:
    """Each piece, and whether it is the last."""
    iterator = iter(pieces)
    piece = next(iterator, None)
    while piece is not None:
        following = next(iterator, None)
        yield piece, following is None
        piece = following


def _through(stage: StreamStage, pieces: Iterator[tuple[Tensor, bool]]) -> Iterator[tuple[Tensor, bool]]:
    stream, started = FrameStream(), False
    for piece, last in pieces:
        count = max(1, round(piece.shape[FRAMES] / stage.frames))
        parts = list(piece.tensor_split(count, dim=FRAMES)) if count > 1 else [piece]
        del piece
        parts.reverse()
        while parts:
            stream.last = last and len(parts) == 1
            memory = stream if started or not stream.last else None
            started = True
            yield stage.run(parts.pop(), memory), stream.last  # no name holds on to the result
