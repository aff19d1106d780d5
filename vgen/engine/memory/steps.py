"""What a step of the transformer and an encoding of texts take, by running them on tensors without content."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from vgen.engine.memory.rehearsal import by_few_blocks, rehearse
from vgen.engine.speed.fast_path import fast_path
from vgen.types import LatentShape


class Work(NamedTuple):
    """What one call does, as far as memory is concerned.

    Attributes:
        shape: of the latents.
        branches: of the guidance: 1 without, 2 with a negative prompt, one more with spatiotemporal guidance.
        clips: made together.
        text_tokens: length of a text.
        extra_tokens: of given frames that are appended to the clip's own.
        encodes: whether pixels are given, which the VAE encodes.
    """

    shape: LatentShape
    branches: int = 1
    clips: int = 1
    text_tokens: int = 128
    extra_tokens: int = 0
    encodes: bool = False


def denoising_peak(transformer: Any, work: Work, *, together: bool = True) -> int:
    """Most bytes above the weights in the denoising loop.

    Args:
        transformer: a VideoDiT on the meta device, in the dtype that it will have.
        work: the call.
        together: the branches of the guidance as one batch, rather than one after another.
    """
    config = transformer.config
    count = work.shape.num_tokens // config.patch_size**2 + work.extra_tokens
    parts = [work.branches] if together else [1] * work.branches
    dtype = transformer.dtype

    def run() -> None:
        start = torch.empty(work.clips, count, config.in_channels, device="meta")
        coordinates = torch.empty(1, 3, count, device="meta")
        texts = [_text(transformer, size * work.clips, work.text_tokens) for size in parts]
        with fast_path(transformer):
            tokens = start
            for _ in range(2):  # the second finds what the first has kept
                predictions: list[Tensor] = []
                for size, (embeds, mask) in zip(parts, texts, strict=True):
                    velocity = transformer(
                        hidden_states=torch.cat([tokens.to(dtype)] * size),
                        encoder_hidden_states=embeds,
                        timestep=torch.empty(size * work.clips, device="meta"),
                        encoder_attention_mask=mask,
                        video_coords=coordinates,
                        return_dict=False,
                    )[0]
                    predictions += velocity.float().chunk(size)
                guided = predictions[0]
                for other in predictions[1:]:
                    guided = guided + (guided - other)
                tokens = tokens + guided

    return by_few_blocks(transformer, "transformer_blocks", lambda: rehearse(run, transformer))


def _text(transformer: Any, rows: int, length: int) -> tuple[Tensor, Tensor]:
    embeds = torch.empty(rows, length, transformer.config.caption_channels, device="meta", dtype=transformer.dtype)
    return embeds, torch.empty(rows, 1, 1, length, dtype=torch.bool, device="meta")


def encoding_text_peak(encoder: Any, texts: int, length: int) -> int:
    """Most bytes above the weights while texts are encoded together.

    Args:
        encoder: of texts, on the meta device: token ids [P, L] to features [P, L, D].
        texts: P.
        length: L.
    """

    def run() -> Tensor:
        return encoder(torch.empty(texts, length, dtype=torch.long, device="meta"))[0]

    return by_few_blocks(encoder.encoder, "block", lambda: rehearse(run, encoder))
