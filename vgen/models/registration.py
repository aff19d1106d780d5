"""Making vgen's classes known to diffusers, so that its loaders, savers, caches and guiders accept them."""

from __future__ import annotations

import logging
from typing import Any

import diffusers

logger = logging.getLogger(__name__)

_METHODS = ["save_pretrained", "from_pretrained"]
_BASES = ("ModelMixin", "SchedulerMixin", "DiffusionPipeline")


def register_class(cls: type) -> type:
    """Let `DiffusionPipeline.from_pretrained` find `cls`, and let pipelines save it as ["vgen", name].

    Usable as a decorator. diffusers looks pipelines up by name in its own namespace, components in that of their
    library, which it has to know (LOADABLE_CLASSES).
    """
    from diffusers.pipelines import pipeline_loading_utils as loading

    loading.LOADABLE_CLASSES.setdefault("vgen", {base: list(_METHODS) for base in _BASES})
    setattr(diffusers, cls.__name__, cls)
    return cls


def register_single_file(cls: type, original: str) -> None:
    """Let `cls.from_single_file` read the files that diffusers' class named `original` reads."""
    from diffusers.loaders import single_file_model

    known: dict[str, Any] = single_file_model.SINGLE_FILE_LOADABLE_CLASSES
    if original in known:
        known[cls.__name__] = known[original]


def register_block(block: type, processor: type) -> None:
    """Tell diffusers' caches and layer-skipping guiders what `block` returns and how `processor` is skipped.

    The registries are private to diffusers: where they are gone, caches fail with diffusers' own message and all else
    works. Entries are set directly, because the registries' own method first imports every model of diffusers.
    """
    try:
        from diffusers.hooks._helpers import (
            AttentionProcessorMetadata,
            AttentionProcessorRegistry,
            TransformerBlockMetadata,
            TransformerBlockRegistry,
        )

        metadata = TransformerBlockMetadata(return_hidden_states_index=0, return_encoder_hidden_states_index=None)
        metadata._cls = block
        TransformerBlockRegistry._registry[block] = metadata
        AttentionProcessorRegistry._registry[processor] = AttentionProcessorMetadata(
            skip_processor_output_fn=_skipped_attention
        )
    except (ImportError, AttributeError, TypeError) as error:
        logger.warning("Caches are not available with diffusers %s: %s", diffusers.__version__, error)


def _skipped_attention(module: object, hidden_states: object = None, *args: object, **kwargs: object) -> object:
    """What an attention that is skipped returns: its input."""
    return hidden_states
