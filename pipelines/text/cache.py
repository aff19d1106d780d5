"""Prompts without a text encoder in memory: embeddings kept on disk, and an encoder loaded only for new texts.

A text encoder is often larger than the transformer and is needed for a moment. `DeferredText` stands in its place in a
pipeline: it looks a text up, loads the encoder only if one is new, and drops it again. An entry is found by the text,
its length, how the encoder masks, and the content of encoder and tokenizer, so that nothing stale can be met.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vgen.engine.device import release_memory
from vgen.engine.lossy.quantize import quantize_text_encoder
from vgen.engine.memory.offload import offload_blocks
from vgen.errors import OutputError
from vgen.hub.checks import check_text_encoder
from vgen.hub.find import model_hash
from vgen.io.files import cache_home, part_of
from vgen.pipelines.text.encoder import (
    PreTrainedTokenizerBase,
    T5EncoderModel,
    encode_texts,
    load_text_encoder,
    truncation_notes,
    warn,
)

logger = logging.getLogger(__name__)

MAX_BYTES = 2 << 30
"""What the cache may take on disk; the entries that were not used for longest go first."""

_ENDING = ".safetensors"


def cache_folder() -> Path:
    """Where embeddings are kept: $VGEN_CACHE/text, else vgen/text in the user's cache folder."""
    return cache_home() / "text"


@dataclass(frozen=True)
class EncodedText:
    """One text: embeddings [L, D] and mask [L] on the CPU, and what to say of its end that did not fit, or ""."""

    embeds: Tensor
    mask: Tensor
    note: str


class TextCache:
    """Embeddings of single texts by key; on disk, or in memory where there is no disk to write to.

    Args:
        folder: made when the first entry is written; None keeps everything in memory.
        max_bytes: bound on what lies on disk.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None, max_bytes: int = MAX_BYTES) -> None:
        self.folder = None if folder is None else Path(folder)
        self.max_bytes = max_bytes
        self._memory: dict[str, EncodedText] = {}

    def get(self, key: str) -> EncodedText | None:
        """The entry of that key, or None; a damaged one counts as none."""
        if key in self._memory or self.folder is None:
            return self._memory.get(key)
        path = self.folder / f"{key}{_ENDING}"
        try:
            with safe_open(path, framework="pt") as file:
                note = (file.metadata() or {}).get("note", "")
                text = EncodedText(file.get_tensor("embeds"), file.get_tensor("mask"), note)
            os.utime(path)
        except (OSError, SafetensorError, ValueError):
            return None
        return text

    def put(self, key: str, text: EncodedText) -> None:
        """Keep an entry; where the disk cannot take it, a warning says so and memory does."""
        if self.folder is None:
            self._memory[key] = text
            return
        path = self.folder / f"{key}{_ENDING}"
        tensors = {"embeds": text.embeds.contiguous(), "mask": text.mask.contiguous()}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with part_of(path, overwrite=True) as part:
                save_file(tensors, part, {"note": text.note})
        except (OSError, OutputError, SafetensorError) as error:
            logger.warning("The text cache in %s cannot be written: %s", self.folder, error)
            self._memory[key] = text
            return
        self._evict()

    def _evict(self) -> None:
        assert self.folder is not None
        entries = []
        for path in self.folder.glob(f"*{_ENDING}"):
            try:
                entries.append((path.stat().st_mtime, path.stat().st_size, path))
            except OSError:
                continue  # another process took it away
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries)[:-1]:
            if total <= self.max_bytes:
                return
            path.unlink(missing_ok=True)
            total -= size


@dataclass
class DeferredText:
    """In the place of a pipeline's text encoder and tokenizer: both are loaded for texts that are new, and dropped.

    Args:
        folder: has text_encoder/ and tokenizer/.
        dtype: of the encoder; None keeps what is stored.
        cache: of what was encoded before.
        variant: of the encoder's weights, see `vgen.io.weights.weight_files.find_weights`.
        way: what of the encoder is on the device: "dropped": all of it; "blocks": two blocks; "host": nothing.
        texts_at_once: encoded as one batch; None: all.
        quantize: of `vgen.request.lossy.TEXT_QUANTIZATIONS`, or None; what was encoded otherwise is not taken for it.
        loads: how often the encoder was loaded.
    """

    folder: Path
    dtype: torch.dtype | None
    cache: TextCache
    variant: str | None = None
    way: str = field(default="dropped", init=False)
    texts_at_once: int | None = field(default=None, init=False)
    quantize: str | None = field(default=None, init=False)
    loads: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        check_text_encoder(self.folder, self.variant)

    @cached_property
    def identity(self) -> str:
        """Says which encoder and tokenizer these are, by their content."""
        encoder = model_hash(self.folder / "text_encoder", self.variant)
        return "|".join((encoder, model_hash(self.folder / "tokenizer"), str(self.dtype)))

    def load(self) -> tuple[T5EncoderModel, PreTrainedTokenizerBase]:
        """Encoder and tokenizer as they are stored, on the CPU."""
        self.loads += 1
        return load_text_encoder(self.folder, self.dtype, self.variant)

    def encode(
        self, texts: Sequence[str], max_sequence_length: int, *, masked: bool, device: torch.device | str
    ) -> tuple[Tensor, Tensor]:
        """Embeddings [P, L, D] and masks [P, L] of texts, as `encode_texts` gives them."""
        keys = {text: self._key(text, max_sequence_length, masked, device) for text in texts}
        known = {text: encoded for text, key in keys.items() if (encoded := self.cache.get(key)) is not None}
        for encoded in known.values():
            warn(encoded.note)
        new = [text for text in keys if text not in known]
        if new:
            for text, encoded in zip(new, self._encode_new(new, max_sequence_length, masked, device), strict=True):
                known[text] = encoded
                self.cache.put(keys[text], encoded)
        embeds, masks = ([getattr(known[text], name) for text in texts] for name in ("embeds", "mask"))
        return torch.stack(embeds).to(device), torch.stack(masks).to(device)

    @torch.no_grad()
    def _encode_new(
        self, texts: list[str], max_sequence_length: int, masked: bool, device: torch.device | str
    ) -> list[EncodedText]:
        encoder, tokenizer = self.load()
        if self.quantize is not None:
            quantize_text_encoder(encoder, self.quantize)
        if self.way == "host":
            device = "cpu"
        try:
            if self.way == "blocks":
                offload_blocks(encoder, encoder.encoder.block, device)
            else:
                encoder.to(device)
            count = self.texts_at_once or len(texts)
            batches = [
                encode_texts(
                    tokenizer, encoder, texts[start : start + count], max_sequence_length, masked=masked, device=device
                )
                for start in range(0, len(texts), count)
            ]
            embeds, mask = (torch.cat(parts) for parts in zip(*batches, strict=True))
            notes = truncation_notes(tokenizer, texts, mask, max_sequence_length)
            return [EncodedText(*row) for row in zip(embeds.cpu(), mask.cpu(), notes, strict=True)]
        finally:
            del encoder
            release_memory()

    def _key(self, text: str, max_sequence_length: int, masked: bool, device: torch.device | str) -> str:
        kind = "cpu" if self.way == "host" else torch.device(device).type
        parts = ["1", self.identity, kind, max_sequence_length, masked, text]
        if self.quantize is not None:
            parts.append(self.quantize)
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
