"""Prompts of a call to embeddings."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from vgen.errors import RequestError
from vgen.pipelines.text.encoder import TextEmbeddings

Encode = Callable[[list[str], int], tuple[Tensor, Tensor]]
"""Texts and max_sequence_length L to embeddings [P, L, D] and masks [P, L]."""


def embed_prompts(
    encode: Encode,
    prompt: str | list[str] | None,
    negative_prompt: str | list[str] | None,
    max_sequence_length: int,
    embeds: Tensor | None = None,
    mask: Tensor | None = None,
    negative_embeds: Tensor | None = None,
    negative_mask: Tensor | None = None,
) -> TextEmbeddings:
    """Encode what is not given as embeddings, all of it as one batch.

    Args:
        encode: encodes texts.
        prompt: P texts, one as a string.
        negative_prompt: one for all, or P; None: it is not needed.
        max_sequence_length: L, where `embeds` do not say it.
        embeds, mask, negative_embeds, negative_mask: in place of the texts, [P, L, D] and [P, L].
    Returns:
        One entry per prompt.
    Raises:
        RequestError: neither a prompt nor embeddings with their mask, or no text encoder.
    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt or [])
    count = len(prompts) if embeds is None else embeds.shape[0]
    texts = prompts if embeds is None else []
    encodes_negative = negative_prompt is not None and negative_embeds is None
    if encodes_negative:
        texts = texts + ([negative_prompt] * count if isinstance(negative_prompt, str) else list(negative_prompt or ()))
    if texts:
        encoded, masks = encode(texts, max_sequence_length if embeds is None else embeds.shape[1])
        if embeds is None:
            embeds, mask = encoded[:count], masks[:count]
        if encodes_negative:
            negative_embeds, negative_mask = encoded[-count:], masks[-count:]
    if embeds is None or mask is None:
        raise RequestError("prompt is None: give a prompt, or prompt_embeds with prompt_attention_mask.")
    return TextEmbeddings(embeds, mask, negative_embeds, negative_mask)
