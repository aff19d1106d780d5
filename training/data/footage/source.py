"""Cached samples as the training loop's source: weighted, captioned, one bucket a batch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from safetensors.torch import load_file
from torch import Tensor

from vgen.errors import CheckpointError, RequestError
from vgen.pipelines.text_cache import DeferredText
from vgen.training.config import FootageConfig
from vgen.training.data.captioned import NULL_TEXT
from vgen.training.data.footage.buckets import Bucket, Sample
from vgen.training.data.footage.cache import CacheIndex
from vgen.training.data.footage.captions import NO_CAPTION
from vgen.training.data.footage.pixels import read_samples
from vgen.training.data.footage.records import DataSet
from vgen.training.data.plan import Batch, Draw

_PIXEL_BYTES = 1 << 29


@dataclass(frozen=True)
class CaptionEncoding:
    """How captions become embeddings: with what, how long, and whether the encoder is told what is padding."""

    text: DeferredText
    max_length: int
    masked: bool
    device: str

    def __call__(self, texts: Sequence[str]) -> Batch:
        """{"prompt_embeds": [B, L, D], "prompt_attention_mask": bool [B, L]}, L the longest text's length."""
        embeds, mask = self.text.encode(texts, self.max_length, masked=self.masked, device=self.device)
        longest = max(1, int(mask.sum(dim=1).max()))
        return {"prompt_embeds": embeds[:, :longest].cpu().float(), "prompt_attention_mask": mask[:, :longest].cpu()}


class FootageLatents:
    """Samples of a cache.

    Args:
        config: of the recipe.
        index: of the cache.
        encoding: of captions.
        text_drop: share of captions replaced by the empty text.
    """

    def __init__(self, config: FootageConfig, index: CacheIndex, encoding: CaptionEncoding, text_drop: float) -> None:
        self.index = index
        self.samples = list(index.samples)
        self.encoding = encoding
        self.text_drop = text_drop
        self.data = DataSet.open(index.data)
        self.clips = {clip.id: clip for clip in self.data.clips}
        gone = [sample.clip for sample in self.samples if sample.clip not in self.clips]
        if gone:
            raise RequestError(f"{index.data} has no clip {gone[0]} any more: run `vgen data cache` again.")
        self.captions = self._read_captions()
        self.weights = _weights(self.samples, config.weights)
        self._pixels: dict[int, Tensor] = {}

    def _read_captions(self) -> dict[str, tuple[str, ...]]:
        captions = {name: self.data.captions(clip) for name, clip in self.clips.items()}
        empty = [name for name, texts in captions.items() if not texts]
        if empty:
            raise RequestError(NO_CAPTION.format(count=len(empty), first=empty[0], data=self.index.data))
        return captions

    @cached_property
    def fingerprint(self) -> str:
        """Changes with any sample, caption or weight."""
        described = [[sample.key, list(self.captions[sample.clip]), weight] for sample, weight in self._weighted()]
        return hashlib.sha256(json.dumps([self.index.vae_hash, described]).encode()).hexdigest()[:16]

    def _weighted(self) -> list[tuple[Sample, float]]:
        return list(zip(self.samples, self.weights.tolist(), strict=True))

    def size(self, num_frames: int) -> int:
        """Number of samples of that length."""
        return sum(sample.bucket.num_frames == num_frames for sample in self.samples)

    def buckets(self) -> dict[Bucket, list[int]]:
        """Indices of the samples of each bucket."""
        found: dict[Bucket, list[int]] = {}
        for place, sample in enumerate(self.samples):
            found.setdefault(sample.bucket, []).append(place)
        return dict(sorted(found.items()))

    def choose(self, num_frames: int, count: int, generator: torch.Generator) -> list[int]:
        """Samples of one bucket of that length, buckets and samples by weight; a small bucket repeats its samples."""
        buckets = [places for bucket, places in self.buckets().items() if bucket.num_frames == num_frames]
        if not buckets:
            raise RequestError(f"num_frames={num_frames}: the cache has no sample of that length.")
        shares = torch.stack([self.weights[places].sum() for places in buckets])
        places = buckets[int(torch.multinomial(shares, 1, generator=generator))]
        weights = self.weights[places]
        chosen: list[int] = []
        while len(chosen) < count:
            batch = min(count - len(chosen), int((weights > 0).sum()))
            drawn = torch.multinomial(weights, batch, generator=generator)
            chosen += [places[int(place)] for place in drawn]
        return chosen

    def texts(self, draw: Draw) -> list[str]:
        """One caption for each sample of a draw, some dropped: a function of the draw alone."""
        picks = torch.rand(2, len(draw.indices), generator=draw.keys.generator("captions"))
        texts = []
        for (drop, pick), place in zip(picks.T.tolist(), draw.indices, strict=True):
            options = self.captions[self.samples[place].clip]
            texts.append(NULL_TEXT if drop < self.text_drop else options[int(pick * len(options))])
        return texts

    def load(self, draw: Draw) -> Batch:
        """{"latents", "last", "weight", "prompt_embeds", "prompt_attention_mask", "indices"}; see `stack`."""
        return {**self.stack(draw.indices), **self.encoding(self.texts(draw))}

    def stack(self, indices: Sequence[int]) -> Batch:
        """{"latents": float32 [B, C, f, h, w], "last": [B, C, 1, h, w] of clips, "weight": [B, 1, f, h, w] where a
        sample has a mask, "indices"}."""
        read = [self._read(self.samples[place]) for place in indices]
        batch = {
            name: torch.stack([part[name].float() for part in read]) for name in ("latents", "last") if name in read[0]
        }
        if any("weight" in part for part in read):
            whole = torch.ones(1, *read[0]["latents"].shape[1:])
            batch["weight"] = torch.stack([part.get("weight", whole).float() for part in read])
        return {**batch, "indices": torch.tensor(list(indices))}

    def _read(self, sample: Sample) -> dict[str, Tensor]:
        file = self.index.latents_file(sample)
        if not file.is_file():
            raise CheckpointError(f"{file} is missing: run `vgen data cache` again.")
        return load_file(file)

    def frame_rate(self, indices: Sequence[int]) -> float:
        """Of a batch, which is of one bucket."""
        return self.samples[int(indices[0])].bucket.frame_rate

    def pixels(self, indices: Sequence[int]) -> Tensor:
        """uint8 [B, F, H, W, 3]: decoded again where they are not remembered."""
        missing = [place for place in dict.fromkeys(indices) if place not in self._pixels]
        by_key = {self.samples[place].key: place for place in missing}
        wanted = [self.samples[place] for place in missing]
        new = {by_key[s.key]: torch.from_numpy(frames) for s, frames in read_samples(wanted, self.clips)}
        result = torch.stack([new[place] if place in new else self._pixels[place] for place in indices])
        for place, frames in new.items():
            if sum(kept.numel() for kept in self._pixels.values()) + frames.numel() <= _PIXEL_BYTES:
                self._pixels[place] = frames
        return result

    def prompts(self) -> list[str]:
        """The first caption of every clip that has a sample, each once."""
        return list(dict.fromkeys(self.captions[sample.clip][0] for sample in self.samples))


def _weights(samples: Sequence[Sample], by_folder: Mapping[str, float]) -> Tensor:
    """How often each sample is drawn, relative to the others: the weight of the deepest folder that names it."""
    unknown = [folder for folder in by_folder if not any(_lies_in(s.folder, folder) for s in samples)]
    if unknown:
        have = ", ".join(sorted({sample.folder for sample in samples}))
        raise RequestError(f"weights: no sample lies in the folder {unknown[0]!r}; there are {have}.")
    deepest = sorted(by_folder, key=len)
    values = [
        next((by_folder[folder] for folder in reversed(deepest) if _lies_in(sample.folder, folder)), 1.0)
        for sample in samples
    ]
    if not any(values):
        raise RequestError("weights: every sample has weight 0; nothing would be trained on.")
    return torch.tensor(values, dtype=torch.float64)


def _lies_in(place: str, folder: str) -> bool:
    return folder == "." or place == folder or place.startswith(f"{folder}/")
