"""The latent cache: clips encoded once by a trained VAE, stored as shards, reused by every later run.

Shards are written atomically and hold a fixed number of clips, the last of a length perhaps fewer, so an interrupted or
enlarged cache goes on where it ended (making such a last one again). A shard's folder is named after the encoder's
weights, the number format that it computes in and the data's fingerprint: other weights never meet old ones, and with
another decoder nothing is encoded again.
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

from vgen.errors import CheckpointError
from vgen.models import CausalVideoVAE
from vgen.training.control import Control
from vgen.training.data.clips import SpriteClips, to_pixels
from vgen.training.data.plan import leave_signals_to_the_parent
from vgen.training.data.shards import Shard, ShardCache, read_shards
from vgen.training.precision import computes_bfloat16
from vgen.training.recipe import LatentCacheConfig
from vgen.types import VideoShape

SHARD_CLIPS = 256


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


class LatentCache(ShardCache):
    """Normalised latents of training clips, by clip length.

    Args:
        config: how many clips of each length, and where they are kept.
        clips: what is encoded.
        vae: the encoder, with its latent statistics.
        vae_hash: names the encoder, see `encoder_hash`.
        folder: used when the config names none.
    """

    def __init__(
        self, config: LatentCacheConfig, clips: SpriteClips, vae: CausalVideoVAE, vae_hash: str, folder: Path
    ) -> None:
        self.config = config
        self.clips = clips
        self.vae = vae
        described = f"{vae_hash}|{clips.fingerprint}|{SHARD_CLIPS}|{config.encode_dtype}"
        key = hashlib.sha256(described.encode()).hexdigest()[:16]
        self.folder = (config.folder if config.folder is not None else folder) / key
        self._groups: dict[int, dict[str, Tensor]] = {}
        self._rendered: Iterator[tuple[_Place, Tensor]] = iter(())

    @property
    def fingerprint(self) -> str:
        """Changes with the clips, the VAE's weights or the number of clips of any length."""
        groups = ",".join(f"{length}:{count}" for length, count in sorted(self.config.groups.items()))
        return hashlib.sha256(f"{self.folder.name}|{groups}".encode()).hexdigest()[:16]

    def size(self, num_frames: int) -> int:
        """Number of cached clips of that length.

        Raises:
            CheckpointError: the recipe caches none of that length.
        """
        if num_frames not in self.config.groups:
            raise CheckpointError(
                f"num_frames={num_frames} is trained on but not cached: add it to objective.latents.groups, which has "
                f"{', '.join(str(length) for length in sorted(self.config.groups))}."
            )
        return self.config.groups[num_frames]

    def shards(self) -> Iterator[Shard]:
        """See ShardCache."""
        for num_frames, count in sorted(self.config.groups.items()):
            for shard, path in enumerate(self._paths(num_frames)):
                told = f"encoding clips of {num_frames} frames: {shard * SHARD_CLIPS} of {count}"
                yield Shard(path, told, partial(self.encode_shard, num_frames, shard))

    def load(self) -> None:
        """Read all shards; they must have been encoded."""
        self._groups = {num_frames: read_shards(self._paths(num_frames)) for num_frames in self.config.groups}

    def load_blank(self) -> None:
        """Hold zeros of the right shapes in place of what is encoded, without the memory."""
        for num_frames, count in self.config.groups.items():
            shape = VideoShape(num_frames, self.clips.config.height, self.clips.config.width)
            frames, height, width = shape.latent(self.vae.strides)
            zero = torch.zeros(1, self.vae.config.latent_channels, 1, height, width, dtype=torch.float16)
            group = {"latents": zero.expand(count, -1, frames, -1, -1)}
            if num_frames > 1:
                group["last"] = zero.expand(count, -1, -1, -1, -1)
            self._groups[num_frames] = group

    @property
    def nbytes(self) -> int:
        """What the latents take in memory once they are read."""
        return sum(value.nbytes for group in self._groups.values() for value in group.values())

    def missing(self, num_frames: int) -> int:
        """How many clips of that length are still to be encoded."""
        paths = enumerate(self._paths(num_frames))
        return sum(len(self._clips_of(num_frames, shard)) for shard, path in paths if not path.exists())

    def missing_seconds(self, clock: Callable[[], float]) -> float:
        """What encoding the rest will take, from a batch of each length; `clock` is what seconds are read from."""
        total = 0.0
        for num_frames in self.config.groups:
            missing = self.missing(num_frames)
            rows = min(self.config.batch, missing)
            if not rows:
                continue
            began = clock()
            frames = self.clips.stack(list(range(rows)), num_frames)["frames"]
            encode_clips(self.vae, frames, self.config.encode_dtype == "bfloat16")
            total += (clock() - began) * missing / rows
        return total

    def get(self, num_frames: int, indices: list[int]) -> dict[str, Tensor]:
        """{"latents": float32 [B, C, f, h, w], "last": float32 [B, C, 1, h, w]} of some clips.

        "last" is the last frame encoded alone, as an image; clips of one frame have none.
        """
        rows = torch.tensor(indices)
        return {name: values[rows].float() for name, values in self._groups[num_frames].items()}

    def encode_missing(
        self, control: Control, say: Callable[[str], None], process: int = 0, processes: int = 1
    ) -> None:
        """See ShardCache; workers render the clips of all missing shards ahead of the encoder."""
        missing = {shard.path for shard in self.missing_shards(process, processes)}
        places = [
            place
            for num_frames in sorted(self.config.groups)
            for shard, path in enumerate(self._paths(num_frames))
            if path in missing
            for place in self._places(num_frames, shard)
        ]
        rendering = DataLoader(
            _Renderings(self.clips, places),
            batch_size=None,
            collate_fn=_unchanged,
            num_workers=min(self.config.workers, os.cpu_count() or 1, len(places)),
            worker_init_fn=leave_signals_to_the_parent,
        )
        self._rendered = iter(rendering)
        super().encode_missing(control, say, process, processes)

    def encode_shard(self, num_frames: int, shard: int, control: Control) -> dict[str, Tensor]:
        """Encode one shard's clips, float16."""
        parts: list[dict[str, Tensor]] = []
        for place in self._places(num_frames, shard):
            control.poll()
            came, frames = next(self._rendered)
            if came != place:
                raise AssertionError(f"{came} was rendered where {place} is due")
            parts.append(encode_clips(self.vae, frames, self.config.encode_dtype == "bfloat16"))
        return {name: torch.cat([part[name] for part in parts]).half() for name in parts[0]}

    def _places(self, num_frames: int, shard: int) -> list[_Place]:
        """What of a shard is rendered and encoded at once."""
        clips, size = self._clips_of(num_frames, shard), self.config.batch
        return [_Place(num_frames, clips[begin : begin + size]) for begin in range(0, len(clips), size)]

    def _clips_of(self, num_frames: int, shard: int) -> range:
        return range(shard * SHARD_CLIPS, min((shard + 1) * SHARD_CLIPS, self.config.groups[num_frames]))

    def _paths(self, num_frames: int) -> list[Path]:
        """A shard of fewer clips says how many in its name, lest it pass for a whole one in an enlarged cache."""
        whole, rest = divmod(self.config.groups[num_frames], SHARD_CLIPS)
        names = [f"{shard:05d}" for shard in range(whole)] + ([f"{whole:05d}-{rest}"] if rest else [])
        return [self.folder / f"frames-{num_frames}" / f"{name}.safetensors" for name in names]


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
