"""What a run on footage needs of a device's memory, estimated before it starts: for `--preset`."""

from __future__ import annotations

import math
from pathlib import Path

from vgen.hub.find import component_config, resolve_model
from vgen.io.weights.safetensors_file import read_entries, read_header
from vgen.io.weights.weight_files import weight_files
from vgen.pipelines.loading.model_files import ModelParts
from vgen.training.cost.rehearsal import transformer_memory
from vgen.training.data.footage.cache import CacheIndex
from vgen.training.fine_tune.presets import FineTune

_FROZEN_BYTES = {"keep": 2.0, "int8": 1.0, "float8": 1.0}


def run_memory(index: CacheIndex, asked: FineTune) -> int:
    """Bytes of the largest micro-batch, with the VAE, which draws the samples and encodes masks.

    Args:
        index: the cache; its largest bucket counts.
        asked: the choices. Without bfloat16 the base and what it computes count twice.
    """
    place = resolve_model(index.model)
    strides = ModelParts.find(index.model).strides
    config = component_config(place, "transformer")
    worst = 0
    for bucket in index.buckets():
        frames = (bucket.num_frames - 1) // strides.temporal + 1
        images = asked.batch if asked.image_batch is None else asked.image_batch
        estimate = transformer_memory(
            config,
            batch=images if bucket.num_frames == 1 else asked.batch,
            tokens=frames * (bucket.height // strides.height) * (bucket.width // strides.width),
            text_tokens=index.max_sequence_length,
            rank=asked.rank if asked.mode == "lora" else None,
            frozen_bytes=_FROZEN_BYTES[asked.base_weights],
            checkpointing=asked.gradient_checkpointing,
            optimizer=asked.optimizer,  # type: ignore[arg-type]
            offload=asked.offload,
        )
        wider = estimate.activations + (estimate.weights if asked.mode == "lora" else 0)
        worst = max(worst, estimate.total + (wider if asked.mixed_precision == "no" else 0))
    return worst + _vae_bytes(place)


def _vae_bytes(place: Path) -> int:
    """Of the VAE's weights in float32."""
    if place.is_file():
        stored = [entry for key, entry in read_header(place).entries.items() if key.startswith("vae.")]
    else:
        stored = list(read_entries(weight_files(place / "vae")).values())
    return 4 * sum(math.prod(entry.shape) for entry in stored)
