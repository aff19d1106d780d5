"""The latent cache: clips encoded once by a trained VAE, reused by every later run.

It is named after the encoder's weights, the number format that it computes in and the data's fingerprint: other weights
never meet old latents, and with another decoder nothing is encoded again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vgen.models import CausalVideoVAE
from vgen.training.config.data import LatentCacheConfig
from vgen.training.control import Control
from vgen.training.data.clips import SpriteClips, to_pixels
from vgen.training.data.plan import leave_signals_to_the_parent
from vgen.training.data.shards import CachingCosts, ShardCache, Tensors
from vgen.training.precision import computes_bfloat16
from vgen.types import VideoShape


class _Place(NamedTuple):
    """Clips that are rendered together."""

    num_frames: int
    indices: range


class _Renderings(Dataset[tuple[_Place, Tensor]]):
    """Many places, each with its frames, uint8 [B, F, H, W, 3]."""

    def __init__(self, clips: SpriteClips, places: list[_Place]) -> None:
        self.clips = clips
        self.places = places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[_Place, Tensor]:
        place = self.places[index]
        return place, self.clips.stack(list(place.indices), place.num_frames)["frames"]


def _unchanged(item: Any) -> Any:
    return item


class LatentCache(ShardCache[int]):
    """Normalised latents of training clips, by clip length: "latents" [N, C, f, h, w] and, of clips of several frames,
    "last" [N, C, 1, h, w], the last frame encoded as an image.

    Args:
        config: how many clips of each length, and where they are kept.
        clips: what is encoded.
        vae: the encoder, with its latent statistics.
        vae_hash: names the encoder, see `encoder_hash`.
        folder: used when the config names none.
    """

    setting = "objective.latents.groups"
    shard_size = 256

    def __init__(
        self, config: LatentCacheConfig, clips: SpriteClips, vae: CausalVideoVAE, vae_hash: str, folder: Path
    ) -> None:
        self.config = config
        self.clips = clips
        self.vae = vae
        self.trial = config.batch
        super().__init__(
            config.folder, folder, f"{vae_hash}|{clips.fingerprint}|{self.shard_size}|{config.encode_dtype}"
        )
        self._rendered: Iterator[tuple[_Place, Tensor]] | None = None

    @property
    def groups(self) -> dict[int, int]:
        """See ShardCache."""
        return dict(sorted(self.config.groups.items()))

    def length(self, group: int) -> int:
        """See ShardCache."""
        return group

    def contents(self) -> str:
        """See ShardCache."""
        return ",".join(f"{length}:{count}" for length, count in self.groups.items())

    def path(self, group: int, places: range) -> Path:
        """See ShardCache; a shard of fewer clips says how many, lest it pass for a whole one in an enlarged cache."""
        rest = "" if len(places) == self.shard_size else f"-{len(places)}"
        return self.folder / f"frames-{group}" / f"{places.start // self.shard_size:05d}{rest}.safetensors"

    def title(self, group: int) -> str:
        """See ShardCache."""
        return f"encoding clips of {group} frames"

    def blank(self, group: int) -> Tensors:
        """See ShardCache."""
        shape = VideoShape(group, self.clips.config.height, self.clips.config.width)
        frames, height, width = shape.latent(self.vae.strides)
        latents = torch.zeros(1, self.vae.config.latent_channels, frames, height, width, dtype=torch.float16)
        return {"latents": latents} if group == 1 else {"latents": latents, "last": latents[:, :, :1]}

    def counted_seconds(self, costs: CachingCosts) -> float:
        """See ShardCache."""
        size, total = self.clips.canvas, 0.0
        for num_frames, missing in self.missing().items():
            if missing:
                rendering = costs.timed(partial(self.clips.stack, [0], num_frames))
                last = costs.encoding(self.vae, 1, size) if num_frames > 1 else 0.0
                total += missing * (rendering + costs.encoding(self.vae, num_frames, size) + last)
        return total

    def get(self, num_frames: int, indices: list[int]) -> Tensors:
        """{"latents": float32 [B, C, f, h, w], "last": float32 [B, C, 1, h, w]} of some clips."""
        rows = torch.tensor(indices)
        return {name: values[rows].float() for name, values in self.loaded[num_frames].items()}

    def fill(self, control: Control, say: Callable[[str], None], process: int = 0, processes: int = 1) -> None:
        """See ShardCache; workers render the clips of all missing shards ahead of the encoder."""
        places = [
            place
            for shard in self.missing_shards(process, processes)
            for place in self._parts(shard.group, shard.places)
        ]
        self._rendered = iter(
            DataLoader(
                _Renderings(self.clips, places),
                batch_size=None,
                collate_fn=_unchanged,
                num_workers=min(self.config.workers, os.cpu_count() or 1, len(places)),
                worker_init_fn=leave_signals_to_the_parent,
            )
        )
        try:
            super().fill(control, say, process, processes)
        finally:
            self._rendered = None

    def make(self, group: int, places: range, control: Control) -> Tensors:
        """See ShardCache: float16."""
        parts: list[Tensors] = []
        for place in self._parts(group, places):
            control.poll()
            ahead = self._rendered or iter(_Renderings(self.clips, [place]))
            came, frames = next(ahead)
            if came != place:
                raise AssertionError(f"{came} was rendered where {place} is due")
            parts.append(encode_clips(self.vae, frames, self.config.encode_dtype == "bfloat16"))
        return {name: torch.cat([part[name] for part in parts]).half() for name in parts[0]}

    def _parts(self, num_frames: int, places: range) -> list[_Place]:
        """What of a shard is rendered and encoded at once."""
        size = self.config.batch
        return [_Place(num_frames, places[begin : begin + size]) for begin in range(0, len(places), size)]


@torch.no_grad()
def encode_clips(vae: CausalVideoVAE, frames: Tensor, bfloat16: bool = False) -> dict[str, Tensor]:
    """Normalised latents of clips and of their last frames alone.

    Args:
        vae: the encoder.
        frames: uint8 [B, F, H, W, 3].
        bfloat16: compute in bfloat16 where that is safe, and no processor would emulate it.
    Returns:
        {"latents": [B, C, f, h, w]} and, for F > 1, {"last": [B, C, 1, h, w]}; float32.
    """
    device = next(vae.parameters()).device
    video = to_pixels(frames.to(device))
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bfloat16 and computes_bfloat16(device)):
        encoded = {"latents": vae.encode(video).latent_dist.mode()}
        if video.shape[2] > 1:
            encoded["last"] = vae.encode(video[:, :, -1:]).latent_dist.mode()
    return {name: vae.normalize(latents.float()).cpu() for name, latents in encoded.items()}


def encoder_hash(vae: CausalVideoVAE) -> str:
    """Hash of all that latents depend on: the encoder's weights, the latent statistics and the configuration."""
    described = {name: value for name, value in vae.config.items() if not name.startswith("_")}  # no path, no version
    digest = hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode())
    for name, value in sorted({**vae.encoder.state_dict(), "mean": vae.latents_mean, "std": vae.latents_std}.items()):
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
