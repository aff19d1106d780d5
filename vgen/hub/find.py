"""Model names to folders and single files, and what their JSON says, without importing torch.

Nothing is ever downloaded here: a name of the Hugging Face hub is looked up in the local cache, and if it is not
there the error says what to fetch. Nothing in a folder can run code, and only safetensors weights are read.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from vgen.errors import CheckpointError, bytes_text, nearest
from vgen.hub.catalog import (
    CATALOG,
    FOLDER_SIZE,
    REPOSITORY,
    TEXT_ENCODERS,
    CatalogEntry,
    entry_of_file,
    entry_of_repository,
    generic_defaults,
)
from vgen.hub.checks import INDEX, check_model, check_text_encoder
from vgen.io.content_hash import content_hashes
from vgen.io.files import read_json
from vgen.io.walk import walk_files
from vgen.io.weights.single_file import SingleFile
from vgen.io.weights.weight_files import is_idle, weight_files
from vgen.request.trained import STATEMENT
from vgen.types import Strides

EMBEDDED = ("sprites",)
"""Models that are shipped inside the package."""

_LTX_CLASSES = {"LTXPipeline", "LTXImageToVideoPipeline", "LTXConditionPipeline"}
_FETCH_TEXT = f'hf download {REPOSITORY} --include "text_encoder/*" --include "tokenizer/*"'


def resolve_model(
    name_or_folder: str | os.PathLike[str], *, upcast_fp8: bool = False, variant: str | None = None
) -> Path:
    """The folder or single file of a model, checked as far as can be without loading it.

    Args:
        name_or_folder: an embedded model's name; a name of `vgen.hub.catalog` or `owner/name` of the Hugging Face hub,
            if it is cached; a folder; or a single safetensors file.
        upcast_fp8: let plain FP8 weights pass, see `SingleFile.check_precision`.
        variant: of a folder's weights, see `vgen.io.weights.weight_files.find_weights`.
    Raises:
        CheckpointError: unknown name (with the nearest known one), not on this machine (with what to fetch), or a
            broken folder or file (with what is wrong with it).
    """
    text = os.fspath(name_or_folder)
    if text in EMBEDDED:
        found = Path(str(files("vgen.assets") / text))
        if not found.is_dir():
            raise CheckpointError(f"model {text!r} should be part of this installation, but {found} is missing.")
    elif text in CATALOG:
        found = find_entry(CATALOG[text]) or _refuse_absent(CATALOG[text])
    else:
        found = _local(text) or next(cached_snapshots(text), None) or _refuse(text)
    if found.is_dir():
        check_model(found, variant)
    else:
        SingleFile.open(found).check_precision(upcast_fp8)
    return found


def _local(text: str) -> Path | None:
    if not text or "\0" in text:
        raise CheckpointError(f"model={text!r} is not a name; use {', '.join(EMBEDDED)} or a model's folder.")
    path = Path(text).expanduser()
    try:
        if path.is_dir() or (path.suffix == ".safetensors" and path.is_file()):
            return path
        if path.exists():
            raise CheckpointError(
                f"model={text!r} is a file; a model is a folder with a model_index.json, or one .safetensors file."
            )
    except OSError as error:
        raise CheckpointError(f"model={text[:80]!r} cannot be looked up: {error.strerror}.") from None
    return None


def cached_snapshots(text: str) -> Iterator[Path]:
    """The cached snapshots of a hub repository, the newest first, by the cache's own layout."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", text):
        return
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub")).expanduser()
    repository = cache / f"models--{text.replace('/', '--')}"
    try:
        revision = (repository / "refs" / "main").read_text(encoding="ascii").strip()
        others = sorted(path for path in (repository / "snapshots").iterdir() if path.name != revision)
    except (OSError, ValueError):
        return
    newest = repository / "snapshots" / revision
    if re.fullmatch(r"[\w.-]+", revision) and newest.is_dir():
        yield from (newest, *others)


def find_entry(entry: CatalogEntry) -> Path | None:
    """Where a model of the catalog is on this machine: a whole folder, else the single file, else None."""
    for snapshot in cached_snapshots(entry.folder or ""):
        if all((snapshot / part).exists() for part in ("model_index.json", "transformer", "vae", "text_encoder")):
            return snapshot
    found = (snapshot / entry.file for snapshot in cached_snapshots(REPOSITORY))
    return next((file for file in found if file.is_file()), None)


def find_text_encoder(model: Path, given: str | os.PathLike[str] | None = None, variant: str | None = None) -> Path:
    """The folder whose text_encoder/ and tokenizer/ a model without its own is to use.

    Args:
        model: a folder or single file; those in it or next to it come first, then the cache of the hub.
        given: a folder, or `owner/name` of a cached hub repository, that is to be used.
        variant: of its weights, see `vgen.io.weights.weight_files.find_weights`.
    Raises:
        CheckpointError: there is none (with what to fetch), or it is broken.
    """
    if given is not None:
        text = os.fspath(given)
        places = [path for path in (_local(text), *cached_snapshots(text)) if path is not None]
    else:
        cached = (snapshot for name in TEXT_ENCODERS for snapshot in cached_snapshots(name))
        places = [model if model.is_dir() else model.parent, *cached]
    for place in places:
        if (place / "text_encoder").is_dir() and (place / "tokenizer").is_dir():
            check_text_encoder(place, variant)
            return place
    where = f"{os.fspath(given)!r} has no text_encoder/ and tokenizer/" if given else f"{model} has no text encoder"
    raise CheckpointError(
        f"{where}, and none is on this machine. Fetch LTX-Video's with `{_FETCH_TEXT}`, or say where it is: "
        "text_encoder_folder=... (a folder with text_encoder/ and tokenizer/), or put these two next to the model."
    )


def text_encoder_bytes(model: Path, given: str | os.PathLike[str] | None = None) -> int:
    """Bytes of the weights of the text encoder that a model is to use, see `find_text_encoder`."""
    folder = find_text_encoder(model, given) / "text_encoder"
    return sum(file.stat().st_size for file in weight_files(folder))


def _refuse_absent(entry: CatalogEntry) -> Path:
    message = f"model={entry.name!r} is not on this machine. Fetch it with `hf download {REPOSITORY} {entry.file}`"
    try:
        find_text_encoder(Path(entry.file))
    except CheckpointError:
        message += f" and its text encoder with `{_FETCH_TEXT}`"
    raise CheckpointError(
        f"{message} ({bytes_text(entry.file_bytes)}, licence: {entry.licence}); nothing is downloaded by itself."
    )


def _refuse(text: str) -> Path:
    known = (
        f"Known are {', '.join(EMBEDDED)}, the names that `vgen models` lists, any folder with a model_index.json, and "
        "any .safetensors file of LTX-Video."
    )
    said = (f"model={text!r} is not known:", nearest(text, (*EMBEDDED, *CATALOG)), known)
    message = " ".join(filter(None, said))
    if re.fullmatch(r"[\w.-]+/[\w.-]+", text):
        message += (
            f" If it is a model of the Hugging Face hub, fetch it first with `hf download {text}`; "
            "nothing is downloaded by itself."
        )
    raise CheckpointError(message)


def model_index(model: str | os.PathLike[str]) -> dict[str, Any]:
    """A model's model_index.json, or the one that a single file made from a folder keeps; empty where it keeps none.

    Raises:
        CheckpointError: it is missing or is not JSON.
    """
    place = Path(model)
    return dict(SingleFile.open(place).folder.get("model_index") or {}) if place.is_file() else read_json(place / INDEX)


def component_config(model: str | os.PathLike[str], kind: str) -> dict[str, Any]:
    """The configuration of a model's transformer or VAE (`kind`), in diffusers' words.

    Args:
        model: a folder, or a single file that holds the component.
    Raises:
        CheckpointError: it is missing or cannot be read.
    """
    place = Path(model)
    return (
        dict(SingleFile.open(place).part(kind).config) if place.is_file() else read_json(place / kind / "config.json")
    )


def model_defaults(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What holds for the parameters that a caller leaves out, see `vgen.hub.catalog.CatalogEntry.defaults`.

    Args:
        folder: a model's folder or single file, from `resolve_model`.
    Returns:
        height, width, num_frames and frame_rate for models that say them and for LTX folders; whatever else the model
        states.
    Raises:
        CheckpointError: model_index.json is missing or broken.
    """
    if Path(folder).is_file():
        return {**FOLDER_SIZE, **file_defaults(SingleFile.open(Path(folder)))}
    file, index = Path(folder) / INDEX, model_index(folder)
    stated = index.get("defaults", {})
    if not isinstance(stated, Mapping):
        raise CheckpointError(f"{file}: 'defaults' is not a JSON object.")
    is_ltx = index.get("_class_name") in _LTX_CLASSES or index.get("convention", "").startswith("ltx")
    size = FOLDER_SIZE if is_ltx else {}
    known = _defaults_of_repository(file)
    return {**size, **known, **{key: value for key, value in stated.items() if value is not None}}


def _defaults_of_repository(file: Path) -> Mapping[str, Any]:
    """The catalog's defaults for a folder in the cache of the hub: its own files do not say them."""
    cached = next((part for part in file.parts if part.startswith("models--")), "")
    entry = entry_of_repository(cached.removeprefix("models--").replace("--", "/", 1))
    return entry.defaults if entry else {}


def file_defaults(file: SingleFile, entry: CatalogEntry | None = None) -> dict[str, Any]:
    """The defaults of a single file's model, see `model_defaults`.

    Args:
        file: opened.
        entry: which model it is; None goes by the folder that the file was made from, the file's name, its header.
    """
    if "model_index" in file.folder and entry is None:
        return dict(file.folder["model_index"].get("defaults") or {})
    allowed = file.configs.get("allowed_inference_steps")
    entry = entry or entry_of_file(file.path)
    if entry is None:
        return {**generic_defaults(file.generation, allowed), **file.facts}
    return {**entry.defaults, **({"allowed_inference_steps": allowed} if allowed else {}), **file.facts}


def model_strides(folder: str | os.PathLike[str]) -> Strides:
    """What sizes must fit: pixels per token along time, height and width, from the JSON of VAE and transformer.

    The VAE's ratios are read where its configuration states them, and counted from the downsampling blocks where not;
    the transformer's patch size comes on top.

    Raises:
        CheckpointError: a file is missing or its keys make no sense.
    """
    place = Path(folder)
    file = place if place.is_file() else place / "vae" / "config.json"
    held = SingleFile.open(place).kinds if place.is_file() else ("vae", "transformer")
    config, patch = (component_config(place, kind) if kind in held else {} for kind in ("vae", "transformer"))
    try:
        scaling = [bool(scale) for scale in config.get("spatio_temporal_scaling") or (True, True, True, False)]
        kinds = list(config.get("downsample_type") or ()) + ["conv"] * len(scaling)
        used = [kind for kind, scale in zip(kinds, scaling, strict=False) if scale]
        spatial = config.get("spatial_compression_ratio")
        temporal = config.get("temporal_compression_ratio")
        if spatial is None:
            spatial = int(config.get("patch_size") or 4) * 2 ** sum(kind != "temporal" for kind in used)
        if temporal is None:
            temporal = int(config.get("patch_size_t") or 1) * 2 ** sum(kind != "spatial" for kind in used)
        rows = int(spatial) * int(patch.get("patch_size") or 1)
        strides = Strides(int(temporal) * int(patch.get("patch_size_t") or 1), rows, rows)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: the compression ratios cannot be read: {error}.") from None
    if min(strides) < 1:
        raise CheckpointError(f"{file}: compression ratios must be 1 or more; got {tuple(strides)}.")
    return strides


def model_hash(folder: str | os.PathLike[str], variant: str | None = None) -> str:
    """A SHA-256 over a model's weights, configurations and tokenizer: the same folder content, the same hash.

    Every file counts whole; large ones are read once, see `vgen.io.content_hash`. What a folder states about its
    training (`vgen.request.trained`) changes nothing that is computed, and does not count.

    Args:
        folder: of a model or component, or a single file.
        variant: of the weights that are loaded; the others do not count.
    Returns:
        64 hexadecimal digits.
    Raises:
        CheckpointError: a file cannot be read.
    """
    root, total = Path(folder), hashlib.sha256()
    try:
        found = [root] if root.is_file() else _model_files(root, variant)
        for file, digest in zip(found, content_hashes(found), strict=True):
            name, size = "" if file == root else f"{file.relative_to(root).as_posix()}\0", file.stat().st_size
            if name == "model_index.json\0" and STATEMENT in (index := read_json(file)):
                content = _as_diffusers_writes({key: value for key, value in index.items() if key != STATEMENT})
                size, digest = len(content), hashlib.sha256(content).hexdigest()
            total.update(f"{name}{size}\0".encode() + bytes.fromhex(digest))
    except OSError as error:
        raise CheckpointError(f"{error.filename or root} cannot be read: {error.strerror or error}.") from None
    return total.hexdigest()


def _as_diffusers_writes(index: Mapping[str, Any]) -> bytes:
    """A model_index.json as `save_pretrained` formats it."""
    return f"{json.dumps(index, indent=2, sort_keys=True)}\n".encode()


def _model_files(root: Path, variant: str | None) -> list[Path]:
    """The files of a folder that decide what the model computes."""
    # Single files of other models on its top level do not, nor weights that are not loaded.
    kept, whole = {".json", ".safetensors", ".model", ".txt"}, (root / "model_index.json").is_file()
    loaded: dict[Path, set[str]] = {}
    return [
        file
        for file in walk_files(root)
        if file.suffix in kept
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(root).parts)
        and not (whole and file.parent == root and file.suffix == ".safetensors")
        and not is_idle(file, loaded, variant)
    ]
