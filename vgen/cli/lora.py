"""`--lora`: what can be refused before torch is imported, and the LoRAs into a loaded pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vgen.errors import CheckpointError, counted
from vgen.hub.find import component_config
from vgen.request.fields import split_lora

if TYPE_CHECKING:
    from vgen.request.request import ResolvedRequest

_LTX_LAYERS = 28
"""Blocks of a transformer whose config does not say it."""


def check_loras(request: ResolvedRequest, folder: Path) -> list[str]:
    """Check the headers and the keys of a request's LoRAs against its model; no tensor is read.

    Args:
        request: resolved.
        folder: of the model, or its single file.
    Returns:
        What to say when the clip is finished, a sentence a LoRA.
    Raises:
        CheckpointError: a file that is missing, damaged or a pickle, or of which no key fits the model.
    """
    if not request.lora:
        return []
    from vgen.io.weights.lora_file import LoraFile
    from vgen.io.weights.lora_keys import map_lora_keys, module_names

    modules, notes = module_names(_num_layers(folder)), []
    for entry in request.lora:
        name, scale = split_lora(entry)
        keys = map_lora_keys(LoraFile.open(name).entries, modules, name)
        notes.append(f"LoRA {name}: {counted(len(keys.modules), 'layer')}, scale {scale:g} ({keys.layout} keys).")
    return notes


def _num_layers(folder: Path) -> int:
    try:
        return int(component_config(folder, "transformer").get("num_layers", _LTX_LAYERS))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{folder}: num_layers cannot be read: {error}.") from None


def load_loras(pipe: Any, request: ResolvedRequest) -> None:
    """Load a request's LoRAs into a pipeline, and set their scales."""
    given = [split_lora(entry) for entry in request.lora or ()]
    names = [f"lora_{n}" for n in range(len(given))]
    for adapter, (file, _) in zip(names, given, strict=True):
        pipe.load_lora_weights(file, adapter)
    if given:
        pipe.set_adapters(names, [scale for _, scale in given])
