"""LoRA files on disk: which file of a folder it is, its header, and the configuration that peft left with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vgen.errors import CheckpointError, RequestError
from vgen.io.files import json_object, read_json
from vgen.io.weights.safetensors_file import TensorEntry, read_header
from vgen.request.fields import split_lora

WEIGHT_NAME = "pytorch_lora_weights.safetensors"
"""What diffusers calls a LoRA in a folder."""

METADATA_KEY = "lora_adapter_metadata"
"""Where diffusers keeps peft's configuration in a file's metadata."""

DEFAULTS_KEY = "vgen_defaults"
"""Where a file's metadata keeps settings that it was made for (JSON), e.g. the sigmas of a distilled LoRA."""

_PEFT_NAME, _PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"


@dataclass(frozen=True)
class LoraFile:
    """A LoRA file whose header was read and checked.

    Attributes:
        path: the file.
        entries: type and shape by key.
        config: of peft; empty where the file has none.
        defaults: settings that it was made for; mostly none.
    """

    path: Path
    entries: Mapping[str, TensorEntry]
    config: Mapping[str, Any]
    defaults: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, place: str | Path, weight_name: str | None = None) -> LoraFile:
        """Find and check a LoRA; no tensor is read.

        Args:
            place: a file, or a folder that holds it.
            weight_name: of the file in the folder, where there is more than one.
        Raises:
            CheckpointError: no such file, none or several in the folder, a pickle, or a damaged file.
        """
        path = _find(Path(place), weight_name)
        entries, metadata = read_header(path)
        defaults = json_object(metadata.get(DEFAULTS_KEY, "{}"), f"{path}: its {DEFAULTS_KEY}")
        return cls(path, entries, _config(path, metadata), defaults)


def _find(place: Path, weight_name: str | None) -> Path:
    if place.is_dir():
        files = sorted(place.glob("*.safetensors"))
        wanted = [weight_name] if weight_name else [WEIGHT_NAME, _PEFT_NAME]
        chosen = [place / name for name in wanted if (place / name).is_file()]
        if not chosen and not weight_name and len(files) == 1:
            chosen = files
        if not chosen:
            have = ", ".join(file.name for file in files[:5]) or "no safetensors file"
            raise CheckpointError(f"{place} has {have}: name the LoRA in it, as a file or with weight_name=.")
        place = chosen[0]
    if not place.is_file():
        raise CheckpointError(f"LoRA {str(place)!r} is not there: give a safetensors file or a folder with one.")
    if place.suffix.lower() != ".safetensors":
        raise CheckpointError(f"{place} is not a .safetensors file; pickles (.pt, .bin, .ckpt) are never loaded.")
    return place


def _config(path: Path, metadata: Mapping[str, str]) -> Mapping[str, Any]:
    """Peft's configuration, without diffusers' component prefix."""
    neighbour = path.with_name(_PEFT_CONFIG)
    if METADATA_KEY in metadata:
        content = json_object(metadata[METADATA_KEY], f"{path}: its LoRA configuration")
    elif path.name == _PEFT_NAME and neighbour.is_file():
        content = read_json(neighbour)
    else:
        return {}
    return {key.removeprefix("transformer."): value for key, value in content.items()}


def combined_defaults(loras: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Settings that LoRAs were made for, together; they go before the model's.

    Args:
        loras: each one's settings, by its name.
    Raises:
        RequestError: two of them are for different values.
    """
    combined: dict[str, Any] = {}
    for name, defaults in loras.items():
        for key, value in defaults.items():
            if combined.setdefault(key, value) != value:
                raise RequestError(f"{name!r} is for {key}={value}, another LoRA for {combined[key]}: use one of them.")
    return combined


def defaults_of_files(loras: Sequence[str]) -> dict[str, Any]:
    """`combined_defaults` of LoRA files; no tensor is read.

    Args:
        loras: FILE or FILE:SCALE each, as a request has them.
    Raises:
        CheckpointError: see `LoraFile.open`.
        RequestError: two of them are for different values.
    """
    return combined_defaults({entry: LoraFile.open(split_lora(entry)[0]).defaults for entry in loras})
