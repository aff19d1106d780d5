"""A folder or a single file, ours or of LTX-Video, to the components of a pipeline; errors say what is wrong."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from safetensors import SafetensorError
from torch import nn

from vgen.errors import CheckpointError, RequestError
from vgen.hub.catalog import CATALOG, entry_named
from vgen.hub.find import file_defaults, find_text_encoder
from vgen.io.weights.safetensors_file import read_entries
from vgen.io.weights.single_file import COMPONENTS, FACTS, SingleFile, tensor_faults
from vgen.io.weights.weight_files import as_plain, weight_files
from vgen.models.empty import empty_model, model_shapes
from vgen.pipelines.call.conventions import from_model_index
from vgen.pipelines.loading.component_checks import check_component, check_scheduler_entry
from vgen.pipelines.text.cache import DeferredText, TextCache
from vgen.pipelines.text.encoder import load_text_encoder, quietly

TEXT = ("text_encoder", "tokenizer")
"""Components that encode prompts."""

_CONVENTION_OF_GENERATION = {"0.9.0": "ltx", "0.9.1": "ltx", "0.9.5": "ltx-condition"}
"""Single files follow the pipeline class that diffusers' folders of the same version name."""


@dataclass(frozen=True)
class TextSource:
    """Where a model's text encoder and tokenizer come from.

    Attributes:
        folder: with text_encoder/ and tokenizer/; None: see `vgen.hub.find.find_text_encoder`.
        cache: leave them out and encode with `DeferredText`; None: load them.
    """

    folder: str | os.PathLike[str] | None = None
    cache: TextCache | None = None

    def add(self, components: dict[str, Any], model: Path, dtype: torch.dtype | None, variant: str | None) -> None:
        """Put what encodes prompts among the components; what is there already stays.

        Raises:
            RequestError: a cache together with something that needs the encoder in memory.
            CheckpointError: no text encoder is there.
        """
        if self.cache is None:
            if not set(TEXT) <= components.keys():
                loaded = load_text_encoder(find_text_encoder(model, self.folder, variant), dtype, variant)
                components.update({**dict(zip(TEXT, loaded, strict=True)), **components})
            return
        also = [name for name in (*TEXT, "quantization_config", "device_map") if components.get(name)]
        if also or isinstance(dtype, dict):
            also_given = also[0] if also else "a dtype for each part"
            raise RequestError(f"text_cache cannot be given together with {also_given}.")
        components.update(dict.fromkeys(TEXT))
        folder = find_text_encoder(model, self.folder, variant)
        components["deferred_text"] = DeferredText(folder, dtype, self.cache, variant)


def load_folder(load: Callable[..., Any], folder: Path, name: str, text: TextSource, components: dict[str, Any]) -> Any:
    """A pipeline from a folder.

    Args:
        load: diffusers' own `from_pretrained`.
        folder: with a model_index.json.
        name: as it was asked for; the defaults of a name in `vgen.hub.catalog` fill in for a folder without any.
        text: of the model.
        components: keyword arguments of `load`, components by name among them.
    Raises:
        RequestError: a component that cannot be used.
        CheckpointError: the folder is incomplete or damaged.
    """
    index = json.loads((folder / "model_index.json").read_bytes())
    if "scheduler" in components:
        check_component("scheduler", components["scheduler"])
    else:
        check_scheduler_entry(index.get("scheduler"))
    stated, variant = index.get("defaults") or {}, components.pop("variant", None)
    if name in CATALOG and not stated:
        components.setdefault("defaults", _as_json(CATALOG[name].defaults))
    if "defaults" in components:  # the caller's settings, and still the model's own positions and schedule
        facts = {fact: stated[fact] for fact in FACTS if fact in stated}
        components["defaults"] = {**facts, **components["defaults"]}
    if text.cache is not None:
        text.add(components, folder, components.get("dtype") or torch.float32, variant)
    elif text.folder is not None or any(index.get(part) == [None, None] for part in TEXT):
        text.add(components, folder, components.get("dtype"), variant)
    with quietly(), as_plain(folder, variant, keep=components.get("device_map") is not None) as place:
        try:
            pipeline = load(str(place), use_safetensors=True, **components)
        except (OSError, SafetensorError, KeyError, RuntimeError, ValueError) as error:
            _check_folder(folder, variant, components)
            raise CheckpointError(f"The model in {folder} cannot be loaded: {error}") from error
    if place != folder:
        _name_by_folder(pipeline, folder, components)
    if "quantization_config" not in components:
        for kind in sorted({"transformer", "vae"} - components.keys()):
            _check_tensors(getattr(pipeline, kind), weight_files(folder / kind, variant))
    return pipeline


def read_file(
    path: Path,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
    text: TextSource,
    upcast_fp8: bool,
    version: str | None,
    given: Mapping[str, Any],
) -> dict[str, Any]:
    """The arguments of a pipeline from a single file; see `ModelPipeline.from_single_file`.

    Raises:
        CheckpointError: the file is damaged, incomplete or of another kind; or no text encoder is there.
        RequestError: an argument that a single file cannot take.
    """
    entry = None if version is None else entry_named(version)
    refused = given.keys() - {"scheduler", "vae", "transformer", *TEXT, "convention", "defaults", "trained"}
    if refused:
        raise RequestError(
            f"{', '.join(sorted(refused))} cannot be given for a single file: convert it to a folder first "
            "(`vgen convert FILE FOLDER`), and load that."
        )
    file = SingleFile.open(path)
    file.check_precision(upcast_fp8)
    components = dict(given)
    for kind in ("transformer", "vae"):
        if kind not in components:
            components[kind] = load_component(file, kind, device or "cpu", dtype or torch.float32)
    components.setdefault("scheduler", FlowMatchEulerDiscreteScheduler.from_config(file.scheduler))
    text.add(components, file.path, dtype, None)
    components.setdefault("convention", convention_of(file))
    components.setdefault("trained", file.folder.get("model_index", {}).get("trained"))
    components["defaults"] = {**file.facts, **components.get("defaults", _as_json(file_defaults(file, entry)))}
    return components


def load_component(
    file: SingleFile, kind: str, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> nn.Module:
    """A model out of a single file, without ever holding more than one copy of it.

    Args:
        file: opened.
        kind: a name of `vgen.io.weights.single_file.COMPONENTS`.
        device, dtype: see `SingleFile.load_into`.
    Raises:
        CheckpointError: the component is not there, or its tensors are not the model's.
    """
    part = file.part(kind)
    model = empty_model(COMPONENTS[kind].class_name, part.config)
    file.load_into(model, part, device, dtype)
    return model


def convention_of(file: SingleFile) -> str:
    """That of the folder which the file was made from, else its generation's."""
    stored = from_model_index(file.folder.get("model_index", {})).get("convention")
    return stored or _CONVENTION_OF_GENERATION[file.generation]


def _as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    return dict(json.loads(json.dumps(dict(values))))


def _name_by_folder(pipeline: Any, folder: Path, given: Mapping[str, Any]) -> None:
    """Let what came out of a folder of links say where its files lie."""
    pipeline.register_to_config(_name_or_path=str(folder))
    for name, component in pipeline.components.items():
        if name in given or component is None:
            continue
        if isinstance(component, ConfigMixin):
            component.register_to_config(_name_or_path=str(folder / name))
        parts: tuple[Any, Any] = (component, getattr(component, "config", None))
        for part in parts:
            if hasattr(part, "name_or_path") and not isinstance(component, ConfigMixin):
                part.name_or_path = str(folder / name)


def _check_folder(folder: Path, variant: str | None, given: Mapping[str, Any]) -> None:
    """Say what is wrong with the tensors of a folder that could not be loaded, if it is they."""
    for kind in ("transformer", "vae"):
        if kind in given:
            continue
        config = json.loads((folder / kind / "config.json").read_bytes())
        try:
            shapes = model_shapes(COMPONENTS[kind].class_name, config)
            stored = read_entries(weight_files(folder / kind, variant))
        except CheckpointError as error:
            raise CheckpointError(f"{folder / kind}: {error}") from None
        _refuse_faults(shapes, {key: entry.shape for key, entry in stored.items()}, folder / kind)


def _check_tensors(model: nn.Module, files: Sequence[Path]) -> None:
    """Refuse weights that lack a tensor, which would silently stay random, or hold one that is not the model's."""
    expected, stored = dict.fromkeys(model.state_dict(), ()), dict.fromkeys(read_entries(files), ())
    _refuse_faults(expected, stored, files[0].parent)


def _refuse_faults(expected: Mapping[str, tuple[int, ...]], saved: Mapping[str, tuple[int, ...]], folder: Path) -> None:
    faults = tensor_faults(expected, saved)
    if faults:
        raise CheckpointError(
            f"The weights in {folder} {faults}. They do not belong to its config.json, or are incomplete: copy or "
            "fetch the model again."
        )
