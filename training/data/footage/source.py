"""Cached samples as the training loop's source: weighted, captioned, one bucket per batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from vgen.errors import CheckpointError, RequestError
from vgen.pipelines.text.cache import DeferredText
from vgen.training.config.data import FootageConfig
from vgen.training.data.captioned import NULL_TEXT
from vgen.training.data.footage.buckets import Sample
from vgen.training.data.footage.cache import CacheIndex
from vgen.training.data.footage.pixels import mask_hashes
from vgen.training.data.footage.records import content_key
from vgen.training.data.footage.samples import FootageSamples
from vgen.training.data.plan import Batch, Draw


@dataclass(frozen=True)
class CaptionEncoding:
    """How captions become embeddings: with what, how long, and whether the encoder is given the padding mask."""

    text: DeferredText
    max_length: int
    masked: bool
    device: str

    def __call__(self, texts: Sequence[str]) -> Batch:
        """{"prompt_embeds": [B, L, D], "prompt_attention_mask": bool [B, L]}, L the longest text's length."""
        embeds, mask = self.text.encode(texts, self.max_length, masked=self.masked, device=self.device)
        longest = max(1, int(mask.sum(dim=1).max()))
        return {"prompt_embeds": embeds[:, :longest].cpu().float(), "prompt_attention_mask": mask[:, :longest].cpu()}


class FootageLatents(FootageSamples):
    """Latents and captions of the samples of a cache.

    Args:
        config: of the recipe.
        index: of the cache.
        encoding: of captions.
        text_drop: share of captions replaced by the empty text.
    """

    def __init__(self, config: FootageConfig, index: CacheIndex, encoding: CaptionEncoding, text_drop: float) -> None:
        super().__init__(index, config.weights)
        self.encoding = encoding
        self.text_drop = text_drop
        self.captions = self.data.all_captions()
        self._check_masks()

    def _check_masks(self) -> None:
        """Refuse latents of another mask than a clip has now; without the footage, the mask of the cache holds."""
        cached = {sample.clip: sample.mask for sample in self.samples}
        there = [self.clips[name] for name in cached if Path(self.clips[name].source).exists()]
        for name, mask in mask_hashes(there).items():
            if mask != cached[name]:
                raise RequestError(
                    f"{self.index.data}: the mask of clip {name} was added, changed or removed since it was cached: "
                    "run `vgen data cache` again."
                )

    @cached_property
    def fingerprint(self) -> str:
        """Changes with any sample, caption, mask or weight."""
        described = [
            [sample.key, sample.mask, self.captions[sample.clip], weight]
            for sample, weight in zip(self.samples, self.weights.tolist(), strict=True)
        ]
        return content_key(self.index.vae_hash, self.index.dtype, described)

    def texts(self, draw: Draw) -> list[str]:
        """One caption for each sample of a draw, some dropped: a function of the draw alone."""
        count = len(draw.indices)
        picks = draw.keys.rows("captions", count, lambda rows, drawn: torch.rand(rows, 2, generator=drawn)).T
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
        batch: Batch = {
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

    def prompts(self) -> list[str]:
        """The first caption of every clip that has a sample, each once."""
        return list(dict.fromkeys(self.captions[sample.clip][0] for sample in self.samples))
