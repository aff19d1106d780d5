"""Cached latents with captions: what the transformer trains on."""

from __future__ import annotations

from functools import lru_cache
from itertools import count as count_from

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from vgen.training.data.latents import LatentCache
from vgen.training.data.plan import Batch, Draw
from vgen.training.data.shards import CachedBatches
from vgen.training.data.sprites.captions import caption
from vgen.training.randomness import key_number

NULL_TEXT = ""
"""What a dropped caption is replaced with: the pipelines' default negative prompt."""


class CaptionedLatents(CachedBatches[LatentCache]):
    """Latents and newly worded captions; a caption is drawn again each time its clip is.

    Args:
        cache: the latents, filled.
        tokenizer: turns captions into ids.
        max_length: most text tokens.
        text_drop: share of captions replaced by the empty text.
    """

    def __init__(
        self, cache: LatentCache, tokenizer: PreTrainedTokenizerBase, max_length: int, text_drop: float
    ) -> None:
        super().__init__(cache)
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.text_drop = text_drop
        self._key = lru_cache(maxsize=None)(lambda index, frames: cache.clips.world.scene(index, frames).key)

    @property
    def workers(self) -> int:
        """Processes that make batches ahead of the steps."""
        return self.cache.config.workers

    def captions(self, draw: Draw) -> list[str]:
        """The captions of a draw, some dropped: a function of the draw alone."""
        count = len(draw.indices)
        drops = draw.keys.rows("text_drop", count, lambda rows, drawn: torch.rand(rows, generator=drawn))
        texts = []
        for index, row, drop in zip(draw.indices, count_from(draw.keys.first_row(count)), drops.tolist(), strict=False):
            rng = np.random.Generator(np.random.PCG64(key_number(draw.keys.number("caption"), "row", row)))
            text = caption(self._key(index, draw.num_frames), rng, still=draw.num_frames == 1)
            texts.append(NULL_TEXT if drop < self.text_drop else text)
        return texts

    def load(self, draw: Draw) -> Batch:
        """{"latents", "last", "input_ids", "attention_mask", "indices"}; text is padded to the longest of the batch."""
        return {
            **self.cache.get(draw.num_frames, draw.indices),
            **tokenize(self.tokenizer, self.captions(draw), self.max_length),
            "indices": torch.tensor(draw.indices),
        }


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: list[str], max_length: int) -> Batch:
    """{"input_ids": int64 [B, L], "attention_mask": int64 [B, L]}, L the longest text's length."""
    tokens = tokenizer(texts, padding="longest", truncation=True, max_length=max_length, return_tensors="pt")
    return {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask}
