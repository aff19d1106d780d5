"""Prompts to embeddings. The only file that imports transformers."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, T5EncoderModel
from transformers.utils import logging as transformers_logging

from vgen.errors import CheckpointError
from vgen.io.weights.weight_files import as_plain

__all__ = [
    "PreTrainedTokenizerBase",
    "T5EncoderModel",
    "TextEmbeddings",
    "empty_text_encoder",
    "encode_texts",
    "load_text_encoder",
    "quietly",
    "truncation_notes",
    "warn",
]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextEmbeddings:
    """Embeddings of prompts [B, L, D] with bool masks [B, L] (True = keep), and of negative prompts."""

    prompt_embeds: Tensor
    prompt_attention_mask: Tensor
    negative_prompt_embeds: Tensor | None = None
    negative_prompt_attention_mask: Tensor | None = None
    _batches: dict[Any, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False, compare=False)

    def batch(self, negatives: Sequence[bool], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Embeddings and masks of several branches one below the other; the same tensors as long as nothing changes.

        Args:
            negatives: by branch, whether it takes the negative prompts.
            dtype: of the embeddings.
        """
        embeds, masks = zip(*(self.branch(negative) for negative in negatives), strict=True)
        key = (tuple(negatives), dtype, *(None if t.is_inference() else t._version for t in (*embeds, *masks)))
        if key not in self._batches or any(tensor.is_inference() for tensor in (*embeds, *masks)):
            self._batches[key] = torch.cat(embeds).to(dtype), torch.cat(masks)
        return self._batches[key]

    def branch(self, negative: bool) -> tuple[Tensor, Tensor]:
        """Embeddings and mask of the prompts, or of the negative prompts."""
        if not negative:
            return self.prompt_embeds, self.prompt_attention_mask
        assert self.negative_prompt_embeds is not None and self.negative_prompt_attention_mask is not None
        return self.negative_prompt_embeds, self.negative_prompt_attention_mask

    def repeated(self, count: int, device: torch.device | None = None) -> TextEmbeddings:
        """Copies of every row `count` times, for clips of the same prompt; on `device` where it is given."""

        def rows(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device or tensor.device).repeat_interleave(count, dim=0)

        own = (self.prompt_embeds, self.prompt_attention_mask, self.negative_prompt_embeds,
               self.negative_prompt_attention_mask)  # fmt: skip
        return TextEmbeddings(*map(rows, own))  # type: ignore[arg-type]

    def updated(self, prompt_embeds: Tensor | None, negative_prompt_embeds: Tensor | None) -> TextEmbeddings:
        """With other embeddings where given; where they are its own, the same object, with all that it keeps."""
        prompt = self.prompt_embeds if prompt_embeds is None else prompt_embeds
        negative = self.negative_prompt_embeds if negative_prompt_embeds is None else negative_prompt_embeds
        if prompt is self.prompt_embeds and negative is self.negative_prompt_embeds:
            return self
        return replace(self, prompt_embeds=prompt, negative_prompt_embeds=negative, _batches={})


@contextmanager
def quietly() -> Iterator[None]:
    """Without the progress bars of diffusers and transformers."""
    shown = [kind for kind in (diffusers_logging, transformers_logging) if kind.is_progress_bar_enabled()]
    for kind in shown:
        kind.disable_progress_bar()
    try:
        yield
    finally:
        for kind in shown:
            kind.enable_progress_bar()


def load_text_encoder(
    folder: Path, dtype: torch.dtype | None, variant: str | None = None
) -> tuple[T5EncoderModel, PreTrainedTokenizerBase]:
    """The encoder in text_encoder/ and the tokenizer in tokenizer/ of a folder; safetensors only, nothing is fetched.

    Args:
        folder: with both.
        dtype: of the encoder; None keeps what is stored.
        variant: of its weights, see `vgen.io.weights.weight_files.find_weights`.
    Raises:
        CheckpointError: they cannot be loaded.
    """
    try:
        with quietly(), as_plain(folder / "text_encoder", variant) as place:
            encoder = T5EncoderModel.from_pretrained(
                place, dtype=dtype or "auto", use_safetensors=True, local_files_only=True
            )
            tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    except (OSError, SafetensorError, KeyError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"The text encoder in {folder} cannot be loaded: {error}") from error
    return encoder.eval(), tokenizer


def empty_text_encoder(config: Path | Mapping[str, Any]) -> T5EncoderModel:
    """A text encoder whose weights take no memory.

    Args:
        config: folder with its config.json, or arguments of T5's configuration.
    Raises:
        CheckpointError: the configuration makes no T5.
    """
    try:
        kind = T5EncoderModel.config_class
        filled = kind.from_pretrained(config) if isinstance(config, Path) else kind(**config)
        with torch.device("meta"):
            return T5EncoderModel(filled).eval()
    except (OSError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"the config of the text encoder makes no T5: {error}") from None


def encode_texts(
    tokenizer: PreTrainedTokenizerBase,
    text_encoder: T5EncoderModel,
    texts: Sequence[str],
    max_sequence_length: int,
    *,
    masked: bool,
    device: torch.device | str,
) -> tuple[Tensor, Tensor]:
    """Encode texts; equal ones are encoded once.

    Args:
        tokenizer: pads and truncates to `max_sequence_length`; what it cuts off is logged as a warning.
        text_encoder: T5.
        texts: P of them, "" allowed.
        max_sequence_length: L.
        masked: tell the encoder which tokens are padding.
        device: where to encode.
    Returns:
        Embeddings [P, L, D] in the encoder's dtype, and their mask [P, L], bool.
    """
    distinct = list(dict.fromkeys(texts))
    tokens = tokenizer(
        distinct,
        padding="max_length",
        max_length=max_sequence_length,
        truncation=True,
        add_special_tokens=True,
        return_tensors="pt",
    )
    for note in truncation_notes(tokenizer, distinct, tokens.attention_mask, max_sequence_length):
        warn(note)
    mask = tokens.attention_mask.bool().to(device)
    embeds = text_encoder(tokens.input_ids.to(device), attention_mask=mask if masked else None)[0]
    rows = torch.tensor([distinct.index(text) for text in texts], device=device)
    return embeds.to(text_encoder.dtype)[rows], mask[rows]


def truncation_notes(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], mask: Tensor, max_sequence_length: int
) -> list[str]:
    """For each text a sentence with the end that did not fit, or ""."""
    return [
        _truncation_note(tokenizer, text, max_sequence_length) if full else ""
        for text, full in zip(texts, mask.all(dim=1).tolist(), strict=True)
    ]


def _truncation_note(tokenizer: PreTrainedTokenizerBase, text: str, max_sequence_length: int) -> str:
    ids = tokenizer(text, add_special_tokens=True).input_ids
    if len(ids) <= max_sequence_length:
        return ""
    lost = tokenizer.decode(ids[max_sequence_length - 1 : -1])
    return f"The prompt has {len(ids)} tokens and max_sequence_length is {max_sequence_length}: {lost!r} is left out."


def warn(note: str) -> None:
    """Log what was cut off a text, if anything was."""
    if note:
        logger.warning("%s", note)
