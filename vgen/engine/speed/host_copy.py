"""Finished frames on their way to the host: made bytes where they are, copied while the next ones are computed."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def to_bytes(video: Tensor) -> Tensor:
    """Decoded pixels to bytes, rounded half to even, on the device that they are on.

    Args:
        video: [B, 3, F, H, W], about [-1, 1]; left as it is.
    Returns:
        uint8 [B, F, H, W, 3], contiguous.
    """
    shares = (video.float() * 0.5).add_(0.5).clamp_(0, 1)
    return shares.mul_(255.0).round_().to(torch.uint8).permute(0, 2, 3, 4, 1).contiguous()


class HostFrames:
    """Collects the pieces of clips on the host, one after the other in time.

    On CUDA the bytes go to page-locked memory on a stream of their own, so that the decoder need not wait for a copy.

    Args:
        num_frames: of the whole clips.
    """

    def __init__(self, num_frames: int) -> None:
        self.num_frames, self.done = num_frames, 0
        self._clips: Tensor | None = None
        self._stream: torch.cuda.Stream | None = None

    def append(self, video: Tensor) -> None:
        """Take the next frames: [B, 3, F, H, W], about [-1, 1]."""
        piece = to_bytes(video)
        if self._clips is None:
            if piece.is_cuda:
                self._stream = torch.cuda.Stream(piece.device)
            size = (piece.shape[0], self.num_frames, *piece.shape[2:])
            self._clips = torch.empty(size, dtype=torch.uint8, pin_memory=piece.is_cuda)
        end = self.done + piece.shape[1]
        if self._stream is None:
            self._clips[:, self.done : end] = piece
        else:
            self._stream.wait_stream(torch.cuda.current_stream(piece.device))
            with torch.cuda.stream(self._stream):
                for clip, frames in zip(self._clips, piece, strict=True):  # contiguous on both sides, else it waits
                    clip[self.done : end].copy_(frames, non_blocking=True)
            piece.record_stream(self._stream)
        self.done = end

    def finish(self) -> np.ndarray:
        """All frames, uint8 [B, F, H, W, 3], once every copy has arrived.

        Raises:
            ValueError: frames are missing.
        """
        if self._clips is None or self.done != self.num_frames:
            raise ValueError(f"{self.done} of {self.num_frames} frames were given.")
        if self._stream is not None:
            self._stream.synchronize()
        return self._clips.numpy()
