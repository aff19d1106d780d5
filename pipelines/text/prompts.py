"""The part of a pipeline that turns prompts into embeddings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor

from vgen.errors import RequestError
from vgen.pipelines.call.conventions import Convention
from vgen.pipelines.call.settings import GenerationSettings
from vgen.pipelines.text.cache import DeferredText
from vgen.pipelines.text.encoder import PreTrainedTokenizerBase, T5EncoderModel, TextEmbeddings, encode_texts


class PipelinePrompts(DiffusionPipeline):
    """Prompts to embeddings, with the text encoder here or with one that is loaded when it is needed."""

    tokenizer: PreTrainedTokenizerBase | None
    text_encoder: T5EncoderModel | None
    deferred_text: DeferredText | None
    fill_settings: Callable[[Mapping[str, Any]], GenerationSettings]

    @property
    def convention(self) -> Convention:
        """See BasePipeline."""
        raise NotImplementedError

    @torch.no_grad()
    def encode_prompt(
        self,
        prompt: str | list[str] | None,
        negative_prompt: str | list[str] | None = None,
        do_classifier_free_guidance: bool = True,
        num_videos_per_prompt: int = 1,
        prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
        max_sequence_length: int = 128,
        device: torch.device | None = None,
    ) -> TextEmbeddings:
        """Encode prompts, or take embeddings as they are; one entry a clip.

        Args:
            prompt, negative_prompt: text; the negative one may be one for all, None is "".
            do_classifier_free_guidance: whether the negative prompt is needed.
            num_videos_per_prompt: entries for each prompt.
            prompt_embeds, prompt_attention_mask: in place of `prompt`, [P, L, D] and [P, L].
            negative_prompt_embeds, negative_prompt_attention_mask: in place of `negative_prompt`.
            max_sequence_length: L.
            device: where to encode.
        Returns:
            Embeddings [B, L, D] and masks [B, L].
        Raises:
            RequestError: neither a prompt nor embeddings with their mask, or no text encoder.
        """
        device = device or self._execution_device
        prompts = [prompt] if isinstance(prompt, str) else list(prompt or [])
        count = len(prompts) if prompt_embeds is None else prompt_embeds.shape[0]
        texts = prompts if prompt_embeds is None else []
        encodes_negative = do_classifier_free_guidance and negative_prompt_embeds is None
        if encodes_negative:
            negative = negative_prompt if negative_prompt is not None else ""
            texts = texts + ([negative] * count if isinstance(negative, str) else list(negative))
        if texts:
            length = max_sequence_length if prompt_embeds is None else prompt_embeds.shape[1]
            embeds, mask = self._encoding()(texts, length, masked=self.convention.mask_text_encoder, device=device)
            if prompt_embeds is None:
                prompt_embeds, prompt_attention_mask = embeds[:count], mask[:count]
            if encodes_negative:
                negative_prompt_embeds, negative_prompt_attention_mask = embeds[-count:], mask[-count:]
        if prompt_embeds is None or prompt_attention_mask is None:
            raise RequestError("prompt is None: give a prompt, or prompt_embeds with prompt_attention_mask.")

        def repeated(row: Tensor) -> Tensor:
            return row.to(device).repeat_interleave(num_videos_per_prompt, dim=0)

        return TextEmbeddings(
            repeated(prompt_embeds),
            repeated(prompt_attention_mask),
            None if negative_prompt_embeds is None else repeated(negative_prompt_embeds),
            None if negative_prompt_attention_mask is None else repeated(negative_prompt_attention_mask),
        )

    def encode_ahead(self, prompts: Sequence[str], negative_prompt: str = "") -> None:
        """Encode what many calls are going to ask for, so that a deferred text encoder is loaded but once.

        Args:
            prompts: of the calls.
            negative_prompt: of all of them.
        """
        if self.text_encoder is None and self.deferred_text is not None:
            length, masked = self.fill_settings({}).max_sequence_length, self.convention.mask_text_encoder
            self.deferred_text.encode([*prompts, negative_prompt], length, masked=masked, device=self._execution_device)

    def _encoding(self) -> Callable[..., tuple[Tensor, Tensor]]:
        """What encodes texts: the text encoder here, or one that is loaded when it is needed."""
        if self.text_encoder is not None:
            return partial(encode_texts, self.tokenizer, self.text_encoder)
        if self.deferred_text is None:
            raise RequestError("prompt: this pipeline has no text encoder; give prompt_embeds and their masks.")
        return self.deferred_text.encode
