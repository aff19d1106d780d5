"""`--lora`: what can be refused before torch is imported, and the LoRAs into a loaded pipeline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vgen.errors import counted
from vgen.hub.model import Model
from vgen.request.fields import split_lora

if TYPE_CHECKING:
    from vgen.request.request import ResolvedRequest

_LTX_LAYERS = 28
"""Blocks of a transformer whose config does not say it."""


def check_loras(request: ResolvedRequest, model: Model) -> list[str]:
    """Check the headers and the keys of a request's LoRAs against its model; no tensor is read.

    Args:
        request: resolved.
        model: of the request.
    Returns:
        A sentence per LoRA.
    Raises:
        CheckpointError: a file that is missing, damaged or a pickle, or of which no key fits the model.
    """
    if not request.lora:
        return []
    from vgen.io.weights.lora_file import LoraFile
    from vgen.io.weights.lora_keys import map_lora_keys, module_names

    modules, notes = module_names(model.component_number("transformer", "num_layers", _LTX_LAYERS)), []
    for entry in request.lora:
        name, scale = split_lora(entry)
        keys = map_lora_keys(LoraFile.open(name).entries, modules, name)
        notes.append(f"LoRA {name}: {counted(len(keys.modules), 'layer')}, scale {scale:g} ({keys.layout} keys).")
    return notes


def load_loras(pipe: Any, request: ResolvedRequest) -> None:
    """Load a request's LoRAs into a pipeline, and set their scales."""
    given = [split_lora(entry) for entry in request.lora or ()]
    names = [f"lora_{n}" for n in range(len(given))]
    for adapter, (file, _) in zip(names, given, strict=True):
        pipe.load_lora_weights(file, adapter)
    if given:
        pipe.set_adapters(names, [scale for _, scale in given])
