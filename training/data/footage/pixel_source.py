"""Footage as clips of pixels, for training a VAE: what SpriteClips is for sprites."""

from __future__ import annotations

from functools import cached_property

import torch

from vgen.errors import RequestError
from vgen.training.data.footage.records import content_key
from vgen.training.data.footage.samples import FootageSamples
from vgen.training.data.plan import Batch, Draw


class FootageClips(FootageSamples):
    """{"frames": uint8 [B, F, H, W, 3], "masks": bool [B, F, H, W], all True, "indices": int64 [B]}.

    A sample serves every length up to its own; shorter ones take its first frames.
    """

    @cached_property
    def fingerprint(self) -> str:
        """Changes with any sample or weight."""
        keys = [sample.key for sample in self.samples]
        return content_key(*zip(keys, self.weights.tolist(), strict=True))

    def fits(self, length: int, num_frames: int) -> bool:
        """Whether a sample of `length` frames serves `num_frames`."""
        return length >= num_frames

    def load(self, draw: Draw) -> Batch:
        """The clips of a draw."""
        if draw.crop is not None:
            raise RequestError("stages: crop is for sprites, which know where their object is; leave it out.")
        return self._clips(draw.indices, draw.num_frames)

    def stack(self, indices: list[int], num_frames: int) -> Batch:
        """Clips of the commonest size, repeated in order, for measurements."""
        long_enough = [place for place, sample in enumerate(self.samples) if sample.bucket.num_frames >= num_frames]
        if not long_enough:
            raise RequestError(f"num_frames={num_frames}: the cache has no sample of that length.")
        sizes = [self.samples[place].bucket[1:3] for place in long_enough]
        common = max(sorted(set(sizes)), key=sizes.count)
        chosen = [place for place, size in zip(long_enough, sizes, strict=True) if size == common]
        return self._clips([chosen[index % len(chosen)] for index in indices], num_frames)

    def _clips(self, places: list[int], num_frames: int) -> Batch:
        frames = self.pixels(places)[:, :num_frames]
        return {
            "frames": frames,
            "masks": torch.ones(frames.shape[:4], dtype=torch.bool),
            "indices": torch.tensor(places),
        }
