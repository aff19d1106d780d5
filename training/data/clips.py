"""SpriteWorld as a source of training clips, rendered when asked for."""

from __future__ import annotations

import hashlib
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from vgen.training.config import SpritesConfig
from vgen.training.data.plan import Batch, Draw
from vgen.training.data.sprites.world import SpriteWorld

_FINGERPRINT_CLIPS = 4


class SpriteClips:
    """Rendered clips: {"frames": uint8 [B, F, H, W, 3], "masks": bool [B, F, H, W], "indices": int64 [B]}.

    Args:
        config: size, tier and number of clips.
        split: "train", "validation" or "test".
    """

    def __init__(self, config: SpritesConfig, split: str = "train") -> None:
        self.config = config
        self.split = split
        self.world = SpriteWorld(
            split=split,
            tier=config.tier if isinstance(config.tier, int) else tuple(config.tier),
            height=config.height,
            width=config.width,
            frame_rate=config.frame_rate,
        )

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the settings and of a few rendered clips: it changes when the renderer does."""
        digest = hashlib.sha256(f"{self.split}|{self.config.num_clips}".encode())
        for index in range(_FINGERPRINT_CLIPS):
            digest.update(self.world.sample(index, 5).frames.tobytes())
        return digest.hexdigest()[:16]

    def size(self, num_frames: int) -> int:
        """The same number of clips for every length."""
        return self.config.num_clips

    def load(self, draw: Draw) -> Batch:
        """Render the clips of a draw."""
        return self.stack(draw.indices, draw.num_frames)

    def stack(self, indices: list[int], num_frames: int) -> Batch:
        """Render clips by index."""
        clips = [self.world.sample(index, num_frames) for index in indices]
        return {
            "frames": torch.from_numpy(np.stack([clip.frames for clip in clips])),
            "masks": torch.from_numpy(np.stack([clip.masks for clip in clips])),
            "indices": torch.tensor(indices),
        }


def to_pixels(frames: Tensor) -> Tensor:
    """uint8 [B, F, H, W, 3] -> float32 [B, 3, F, H, W] in [-1, 1]."""
    return frames.permute(0, 4, 1, 2, 3).float().div_(127.5).sub_(1.0)


def to_frames(pixels: Tensor) -> Tensor:
    """[B, 3, F, H, W] in [-1, 1] -> uint8 [B, F, H, W, 3], rounded and clipped."""
    return pixels.float().add(1.0).mul(127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 4, 1).contiguous()
