"""What a clip depends on besides model and request, by content: files of the same name may hold something else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vgen.hub.find import find_text_encoder, model_hash

if TYPE_CHECKING:
    from vgen.request.request import ResolvedRequest


def contents(request: ResolvedRequest, folder: Path) -> dict[str, Any]:
    """SHA-256 of the LoRAs, the text encoder, the upsampler and the measured magnitudes that a request uses.

    Args:
        request: resolved and checked.
        folder: of the model, or its single file.
    Returns:
        By kind, as JSON; a text encoder inside the model's folder belongs to the model and is left out.
    Raises:
        CheckpointError: a file is missing or cannot be read.
    """
    from vgen.engine.lossy.magnitudes import magnitudes_file
    from vgen.hub.upsampler import find_upsampler
    from vgen.io.weights.lora_file import LoraFile
    from vgen.request.fields import split_lora

    hashes: dict[str, Any] = {}
    if request.lora:
        loras = [LoraFile.open(split_lora(entry)[0]) for entry in request.lora]
        hashes["lora"] = [_with_config([lora.path], lora.config) for lora in loras]
    encoder = find_text_encoder(folder, request.text_encoder)
    if encoder != folder:
        hashes["text_encoder"] = [model_hash(encoder / part) for part in ("text_encoder", "tokenizer")]
    if request.upscale is not None:
        upsampler = find_upsampler(request.upscale)
        hashes["upscale"] = _with_config(upsampler.weights, upsampler.config)
    if request.step_cache is not None and request.step_cache.startswith("magcache"):
        hashes["magnitudes"] = model_hash(magnitudes_file(folder))
    return hashes


def _with_config(weights: Sequence[Path], config: Mapping[str, Any]) -> str:
    text = json.dumps([[model_hash(file) for file in weights], dict(config)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
