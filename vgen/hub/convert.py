"""A diffusers folder of LTX-Video <-> a single file in the original layout, without changing a bit of any tensor.

What one side has no place for travels along: a single file made from a folder keeps the folder's JSON in its metadata,
a folder made from a single file keeps the file's metadata and its unused tensors in `original.safetensors`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vgen.errors import CheckpointError, OutputError, counted, listed
from vgen.hub.catalog import CatalogEntry
from vgen.hub.checks import check_model, check_text_encoder
from vgen.hub.find import file_defaults
from vgen.io.files import exists_message, part_of, read_json, write_json
from vgen.io.weights.ltx_configs import generation, scheduler_to_original, transformer_facts
from vgen.io.weights.safetensors_file import TensorEntry, copy_tensors, read_entries, read_header
from vgen.io.weights.single_file import COMPONENTS, FACTS, FOLDER_KEY, SingleFile, tensor_faults
from vgen.io.weights.weight_files import weight_files

SIDECAR = "original.safetensors"
"""File in a folder that holds what only the single file has a place for."""

WEIGHTS = "diffusion_pytorch_model.safetensors"
KINDS = ("transformer", "vae")
"""The components of a whole single file."""

ShapesOf = Callable[[str, Mapping[str, Any]], Mapping[str, tuple[int, ...]]]
"""Class name and config -> shapes by key, see `vgen.models.empty.model_shapes`."""


def folder_to_file(folder: Path, path: Path, shapes_of: ShapesOf, *, overwrite: bool = False) -> None:
    """Write transformer, VAE and the configs of a folder into one file; text encoder and tokenizer have no place there.

    Args:
        folder: a model's folder.
        path: to be written, `.safetensors`.
        shapes_of: tells what tensors a model with a config has.
        overwrite: replace what is there.
    Raises:
        CheckpointError: the folder is damaged, or no LTX-Video model.
        OutputError: `path` exists, or cannot be written.
    """
    _check_place(path, overwrite)
    check_model(folder)
    stored = {kind: read_json(folder / kind / "config.json") for kind in KINDS}
    tensors: dict[str, TensorEntry] = {}
    for kind in KINDS:
        tensors |= _folder_tensors(folder / kind, kind, _plain(stored[kind]), shapes_of)
    stored |= {"model_index": read_json(folder / "model_index.json")}
    stored |= {"scheduler": read_json(folder / "scheduler" / "scheduler_config.json")}
    metadata = _kept_metadata(folder, stored, tensors)
    if metadata is None:
        original = {kind: COMPONENTS[kind].to_original(_plain(stored[kind])) for kind in KINDS}
        defaults = stored["model_index"].get("defaults") or {}
        original |= {"scheduler": scheduler_to_original(stored["scheduler"], defaults)}
        original["transformer"] |= transformer_facts(defaults, generation(_plain(stored["vae"])))
        allowed = defaults.get("allowed_inference_steps")
        original |= {"allowed_inference_steps": allowed} if allowed else {}
        metadata = {"config": json.dumps(original), FOLDER_KEY: json.dumps(stored, sort_keys=True)}
    else:
        tensors |= read_entries([folder / SIDECAR])
    with part_of(path, overwrite=overwrite, bytes_needed=_total(tensors)) as part:
        copy_tensors(part, tensors, metadata)


def _folder_tensors(folder: Path, kind: str, config: Mapping[str, Any], shapes_of: ShapesOf) -> dict[str, TensorEntry]:
    """A component's tensors by the key they have in a single file."""
    component = COMPONENTS[kind]
    try:
        component.to_original(config)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from None
    tensors = read_entries(weight_files(folder))
    faults = tensor_faults(
        shapes_of(component.class_name, config), {key: tensor.shape for key, tensor in tensors.items()}
    )
    if faults:
        raise CheckpointError(f"The weights in {folder} {faults}.")
    table = component.table(config)
    return {component.prefixes[0] + table.to_original(key): tensor for key, tensor in tensors.items()}


def _kept_metadata(
    folder: Path, stored: Mapping[str, Any], tensors: Mapping[str, TensorEntry]
) -> Mapping[str, str] | None:
    """The metadata of the file that a folder was made from, if it still says what the folder says."""
    if not (folder / SIDECAR).is_file():
        return None
    metadata = read_header(folder / SIDECAR).metadata
    source = SingleFile(folder / SIDECAR, tensors, metadata)
    try:
        for kind in KINDS:
            to_original = COMPONENTS[kind].to_original
            if to_original(source.part(kind).config) != to_original(_plain(stored[kind])):
                return None
        same = all(stored["scheduler"].get(key) == value for key, value in source.scheduler.items())
        defaults = stored["model_index"].get("defaults") or {}
        same = same and source.facts == {name: defaults[name] for name in FACTS if name in defaults}
    except CheckpointError:
        return None
    return metadata if same else None


def file_to_folder(
    path: Path,
    folder: Path,
    shapes_of: ShapesOf,
    *,
    overwrite: bool = False,
    text_encoder: Path | None = None,
    entry: CatalogEntry | None = None,
) -> None:
    """Write a folder that this package and diffusers load.

    Args:
        path: a single file with transformer and VAE.
        folder: to be written.
        shapes_of: tells what tensors a model with a config has.
        overwrite: replace what is there.
        text_encoder: folder whose text_encoder/ and tokenizer/ are put into the new one; None leaves them out.
        entry: which model it is; None goes by the file's name.
    Raises:
        CheckpointError: the file is damaged, or no whole LTX-Video model.
        OutputError: `folder` exists, or cannot be written.
    """
    _check_place(folder, overwrite)
    file = SingleFile.open(path)
    file.check_precision()
    if text_encoder is not None:
        check_text_encoder(text_encoder)
    parts = [file.part(kind) for kind in KINDS]
    strays = file.stray_keys()
    if strays:
        count = counted(len(strays), "tensor")
        raise CheckpointError(f"{path} has {count} that belong to no component: {listed(strays)}.")
    for part in parts:
        file.check_tensors(part, shapes_of(part.component.class_name, part.config))
    with part_of(folder, overwrite=overwrite, folder=True, bytes_needed=path.stat().st_size) as new:
        for part in parts:
            kind = part.component.kind
            config = {"_class_name": part.component.diffusers_name, **part.config}
            write_json(new / kind / "config.json", file.folder.get(kind) or config, indent=2, sort_keys=True)
            tensors = {key: file.entries[name] for key, name in part.keys.items()}
            copy_tensors(new / kind / WEIGHTS, tensors, {"format": "pt"})
        scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", **file.scheduler}
        write_json(new / "scheduler" / "scheduler_config.json", scheduler, indent=2, sort_keys=True)
        idle = {key: file.entries[key] for part in parts for key in part.idle}
        if idle or not file.folder:
            copy_tensors(new / SIDECAR, idle, file.metadata)
        if text_encoder is not None:
            for name in ("text_encoder", "tokenizer"):
                shutil.copytree(text_encoder / name, new / name, copy_function=_link)
        write_json(new / "model_index.json", _model_index(file, text_encoder, entry), indent=2, sort_keys=True)


def _model_index(file: SingleFile, text_encoder: Path | None, entry: CatalogEntry | None) -> dict[str, Any]:
    """The model_index.json of a new folder: the stored one, or what the version asks for."""
    absent: list[Any] = [None, None]
    texts = {"text_encoder": absent, "tokenizer": absent}
    if text_encoder is not None:
        stored = read_json(text_encoder / "tokenizer" / "tokenizer_config.json")
        texts = {"text_encoder": ["transformers", "T5EncoderModel"]}
        texts |= {"tokenizer": ["transformers", stored.get("tokenizer_class") or "T5Tokenizer"]}
    if "model_index" in file.folder:
        index = file.folder["model_index"]
        known = {name: index[name] for name in texts if text_encoder is not None and index.get(name, absent) != absent}
        return {**index, **texts, **known}
    return {
        "_class_name": "LTXPipeline" if file.generation in ("0.9.0", "0.9.1") else "LTXConditionPipeline",
        "_diffusers_version": version("diffusers"),
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        **{kind: ["diffusers", COMPONENTS[kind].diffusers_name] for kind in KINDS},
        **texts,
        "defaults": file_defaults(file, entry),
    }


def _check_place(path: Path, overwrite: bool) -> None:
    if not path.parent.is_dir():
        raise OutputError(f"{path} cannot be written: the folder {path.parent} does not exist.")
    if path.exists() and not overwrite:
        raise OutputError(exists_message(path))


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not key.startswith("_")}


def _link(source: str, target: str) -> None:
    """A hard link where that can be, else a copy: a text encoder has 10 GB and more."""
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copy2(source, target)


def _total(tensors: Mapping[str, TensorEntry]) -> int:
    return sum(tensor.num_bytes for tensor in tensors.values()) + (1 << 20)
