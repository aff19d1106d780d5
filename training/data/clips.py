"""SpriteWorld as a source of training clips, rendered when asked for."""

from __future__ import annotations

import hashlib
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from vgen.training.config.data import SpritesConfig
from vgen.training.data.plan import Batch, Draw
from vgen.training.data.sprites.keys import BASIC_MOTIONS
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
            emphasis=config.emphasis if split == "train" else None,
        )

    @property
    def workers(self) -> int:
        """Processes that render ahead of the steps."""
        return self.config.workers

    @property
    def canvas(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.config.height, self.config.width

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the settings and of a few rendered clips: it changes when the renderer does."""
        digest = hashlib.sha256(f"{self.split}|{self.config.num_clips}".encode())
        if self.world.emphasis:
            digest.update(repr(sorted(self.world.emphasis.items())).encode())
        for index in range(_FINGERPRINT_CLIPS):
            digest.update(self.world.sample(index, 5).frames.tobytes())
        return digest.hexdigest()[:16]

    def size(self, num_frames: int) -> int:
        """The same number of clips for every length."""
        return self.config.num_clips

    def load(self, draw: Draw) -> Batch:
        """Render the clips of a draw, cropped where it says so."""
        batch = self.stack(draw.indices, draw.num_frames)
        if draw.crop is None:
            return batch
        places = draw.keys.generator("crop")
        torch.rand(draw.keys.first_row(len(draw.indices)), 3, generator=places)  # those of other processes' rows
        return crop_to_objects(batch, draw.crop, places)

    def pictures(self, indices: list[int], places: Tensor) -> Tensor:
        """What the clips show, at rest somewhere else, uint8 [B, 1, H, W, 3]: at `places` [B, 2] in [0, 1)."""
        return torch.from_numpy(
            np.stack([self.world.picture(index, *place) for index, place in zip(indices, places.tolist(), strict=True)])
        )

    def turns(self, indices: list[int], num_frames: int, turn: int, draws: Tensor) -> Tensor:
        """Clips that show what their keys say from frame `turn` on only: uint8 [B, F, H, W, 3].

        `draws`, [B, 2] in [0, 1), says which way and how fast the object moves before.
        """
        clips = []
        for index, (way, pace) in zip(indices, draws.tolist(), strict=True):
            motion = BASIC_MOTIONS[int(way * len(BASIC_MOTIONS))]
            clips.append(self.world.turn(index, num_frames, turn, motion, 0.9 + 1.5 * pace))
        return torch.from_numpy(np.stack(clips))

    def stack(self, indices: list[int], num_frames: int) -> Batch:
        """Render clips by index."""
        clips = [self.world.sample(index, num_frames) for index in indices]
        return {
            "frames": torch.from_numpy(np.stack([clip.frames for clip in clips])),
            "masks": torch.from_numpy(np.stack([clip.masks for clip in clips])),
            "indices": torch.tensor(indices),
        }


def crop_to_objects(batch: Batch, side: int, generator: torch.Generator) -> Batch:
    """Cut a square of `side` pixels out of every clip of a batch that holds a random pixel of the object.

    Small objects leave most of a clip empty; a crop spends the same work on more of them. It is at the same place in
    all frames of a clip.
    """
    masks = batch["masks"]
    height, width = masks.shape[2:]
    frames_out, masks_out = [], []
    for frames, mask in zip(batch["frames"], masks, strict=True):
        spots = mask.nonzero()
        draws = torch.rand(3, generator=generator)
        row, column = height // 2, width // 2
        if len(spots):
            row, column = spots[int(draws[0] * len(spots))][1:].tolist()
        top = _offset(row, side, height, float(draws[1]))
        left = _offset(column, side, width, float(draws[2]))
        frames_out.append(frames[:, top : top + side, left : left + side])
        masks_out.append(mask[:, top : top + side, left : left + side])
    return {**batch, "frames": torch.stack(frames_out), "masks": torch.stack(masks_out)}


def _offset(place: int, side: int, size: int, draw: float) -> int:
    """Where a window of `side` begins so that it holds `place` and stays inside `size`."""
    lowest, highest = max(0, place - side + 1), min(place, size - side)
    return lowest + int(draw * (highest - lowest + 1))


def to_pixels(frames: Tensor) -> Tensor:
    """uint8 [B, F, H, W, 3] -> float32 [B, 3, F, H, W] in [-1, 1]."""
    return frames.permute(0, 4, 1, 2, 3).float().div_(127.5).sub_(1.0)


def to_frames(pixels: Tensor) -> Tensor:
    """[B, 3, F, H, W] in [-1, 1] -> uint8 [B, F, H, W, 3], rounded and clipped."""
    return pixels.float().add(1.0).mul(127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 4, 1).contiguous()
