"""The text encoder that is trained together with the transformer."""

from __future__ import annotations

import torch
from transformers import T5Config, T5EncoderModel

from vgen.training.model_sources import LOADED, ModelSource
from vgen.training.objectives.flow.config import FlowObjectiveConfig
from vgen.training.randomness import key_number


def build_text_encoder(
    config: FlowObjectiveConfig, vocabulary: int, seed: int, models: ModelSource = LOADED
) -> T5EncoderModel:
    """A fresh T5 encoder, or the one of the pipeline folder in `init`.

    Args:
        config: of the recipe.
        vocabulary: number of the tokenizer's pieces.
        seed: of the recipe.
        models: where `init` comes from.
    """
    if config.init is not None:
        return models.text_encoder(config.init)
    size = config.text_encoder
    described = T5Config(
        vocab_size=vocabulary,
        d_model=size.d_model,
        d_kv=size.d_kv,
        d_ff=size.d_ff,
        num_layers=size.num_layers,
        num_heads=size.num_heads,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
        use_cache=False,
        pad_token_id=0,
        eos_token_id=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(key_number(seed, "text encoder"))
        return models.fresh(lambda: T5EncoderModel(described))
