"""Model names to folders, and what a folder's JSON says, without importing torch.

Nothing is ever downloaded here: a name of the Hugging Face hub is looked up in the local cache, and if it is not
there the error says what to fetch. Nothing in a folder can run code, and only safetensors weights are read.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from vgen.errors import CheckpointError
from vgen.io.checkpoint import check_weights
from vgen.types import Strides

EMBEDDED = ("sprites",)
"""Models that are shipped inside the package."""

HASHED_WHOLE = 1 << 28
"""Files up to this many bytes enter `model_hash` whole; of larger ones the size, the first and the last mebibyte."""

_LIBRARIES = {"vgen", "diffusers", "transformers"}
_LTX_CLASSES = {"LTXPipeline", "LTXImageToVideoPipeline", "LTXConditionPipeline"}
_SAMPLING = {"num_inference_steps": 50, "guidance_scale": 3.0, "guidance_rescale": 0.0, "negative_prompt": ""}
_LTX_SIZE = {"height": 512, "width": 704, "num_frames": 161, "frame_rate": 25.0}
_WEIGHT_NAMES = ("diffusion_pytorch_model", "model")


def resolve_model(name_or_folder: str | os.PathLike[str]) -> Path:
    """The folder of a model, checked as far as can be without loading it.

    Args:
        name_or_folder: an embedded model's name, a folder, or `owner/name` of the Hugging Face hub if it is cached.
    Raises:
        CheckpointError: unknown name (with the nearest known one), not on this machine, or a broken folder (with the
            file and what is wrong with it).
    """
    text = os.fspath(name_or_folder)
    if text in EMBEDDED:
        folder = Path(str(files("vgen.assets") / text))
        if not folder.is_dir():
            raise CheckpointError(f"model {text!r} should be part of this installation, but {folder} is missing.")
    else:
        folder = _local_folder(text) or _cached_snapshot(text) or _refuse(text)
    check_model(folder)
    return folder


def _local_folder(text: str) -> Path | None:
    if not text or "\0" in text:
        raise CheckpointError(f"model={text!r} is no name; use {', '.join(EMBEDDED)} or a model's folder.")
    folder = Path(text).expanduser()
    try:
        if folder.is_dir():
            return folder
        if folder.exists():
            raise CheckpointError(f"model={text!r} is a file; a model is a folder with a model_index.json.")
    except OSError as error:
        raise CheckpointError(f"model={text[:80]!r} cannot be looked up: {error.strerror}.") from None
    return None


def _cached_snapshot(text: str) -> Path | None:
    """The newest cached snapshot of a hub repository, by the cache's own layout."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", text):
        return None
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub")).expanduser()
    repository = cache / f"models--{text.replace('/', '--')}"
    try:
        revision = (repository / "refs" / "main").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
    snapshot = repository / "snapshots" / revision
    return snapshot if re.fullmatch(r"[\w.-]+", revision) and snapshot.is_dir() else None


def _refuse(text: str) -> Path:
    near = difflib.get_close_matches(text, EMBEDDED, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    message = (
        f"model={text!r} is not known: {hint}Known are {', '.join(EMBEDDED)}, and any folder with a model_index.json."
    )
    if re.fullmatch(r"[\w.-]+/[\w.-]+", text):
        message += (
            f" If it is a model of the Hugging Face hub, fetch it first with `hf download {text}`; "
            "nothing is downloaded by itself."
        )
    raise CheckpointError(message)


def check_model(folder: Path) -> None:
    """Check a model folder: every component there, its JSON whole, its weights safetensors with a sound header.

    Raises:
        CheckpointError: names the file and what is wrong with it.
    """
    index = _read_json(folder / "model_index.json")
    components = {key: value for key, value in index.items() if isinstance(value, list)}
    for name in ("transformer", "vae"):
        if name not in components:
            raise CheckpointError(f"{folder / 'model_index.json'} lists no {name!r}: it is not a video model's folder.")
    for name, entry in components.items():
        if len(entry) != 2 or entry == [None, None]:
            continue
        library, class_name = entry
        if not (isinstance(library, str) and library in _LIBRARIES and isinstance(class_name, str)):
            raise CheckpointError(
                f"{folder / 'model_index.json'} asks for code from {library!r} for {name!r}; "
                f"only {', '.join(sorted(_LIBRARIES))} are used, and code in a model's folder is never run."
            )
        has_weights = not class_name.endswith("Scheduler") and "Tokenizer" not in class_name
        _check_component(folder / name, needs_weights=has_weights)


def _check_component(folder: Path, needs_weights: bool) -> None:
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is missing: model_index.json lists it. Copy or fetch the whole model again.")
    for file in sorted(folder.glob("*.json")):
        content = _read_json(file)
        if "auto_map" in content:
            raise CheckpointError(f"{file} asks for remote code (auto_map); code in a model's folder is never run.")
    if not needs_weights:
        return
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder / 'config.json'} is missing. Copy or fetch the whole model again.")
    for file in weight_files(folder):
        check_weights(file)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of one component, shards included.

    Raises:
        CheckpointError: there is none, or a shard that the index lists is missing.
    """
    for name in _WEIGHT_NAMES:
        if (folder / f"{name}.safetensors").is_file():
            return [folder / f"{name}.safetensors"]
        index = folder / f"{name}.safetensors.index.json"
        if index.is_file():
            shards = _read_json(index).get("weight_map")
            if not isinstance(shards, dict) or not all(isinstance(s, str) for s in shards.values()):
                raise CheckpointError(f"{index} has no weight_map from keys to files.")
            found = [folder / shard for shard in sorted(set(shards.values()))]
            for shard in found:
                if shard.parent != folder or not shard.is_file():
                    raise CheckpointError(f"{shard} is missing: {index.name} lists it. Fetch the whole model again.")
            return found
    others = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt"))
    hint = f" Only {others[0]} is there, which could run code when loaded." if others else ""
    raise CheckpointError(f"{folder} has no weights: {_WEIGHT_NAMES[0]}.safetensors is missing.{hint}")


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing. Is this a model's folder, and the whole of it?") from None
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is not JSON: {error}.") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} does not hold a JSON object.")
    return content


def model_defaults(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What the model's makers chose for the parameters that a caller leaves out.

    Args:
        folder: a model's folder.
    Returns:
        num_inference_steps, guidance_scale, guidance_rescale and negative_prompt in any case; height, width,
        num_frames and frame_rate for models that say them and for LTX folders; whatever else the model states.
    Raises:
        CheckpointError: model_index.json is missing or broken.
    """
    file = Path(folder) / "model_index.json"
    index = _read_json(file)
    stated = index.get("defaults", {})
    if not isinstance(stated, Mapping):
        raise CheckpointError(f"{file}: 'defaults' is not a JSON object.")
    size = (
        _LTX_SIZE if index.get("_class_name") in _LTX_CLASSES or index.get("convention", "").startswith("ltx") else {}
    )
    return {**_SAMPLING, **size, **{key: value for key, value in stated.items() if value is not None}}


def model_strides(folder: str | os.PathLike[str]) -> Strides:
    """What sizes must fit: pixels per token along time, height and width, from the JSON of VAE and transformer.

    The VAE's ratios are read where its configuration states them, and counted from the downsampling blocks where not;
    the transformer's patch size comes on top.

    Raises:
        CheckpointError: a file is missing or its keys make no sense.
    """
    file = Path(folder) / "vae" / "config.json"
    config = _read_json(file)
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
        patch = _read_json(Path(folder) / "transformer" / "config.json")
        rows = int(spatial) * int(patch.get("patch_size") or 1)
        strides = Strides(int(temporal) * int(patch.get("patch_size_t") or 1), rows, rows)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: the compression ratios cannot be read: {error}.") from None
    if min(strides) < 1:
        raise CheckpointError(f"{file}: compression ratios must be 1 or more; got {tuple(strides)}.")
    return strides


def model_hash(folder: str | os.PathLike[str]) -> str:
    """A SHA-256 over a model's weights, configurations and tokenizer: the same folder content, the same hash.

    Large files count by size, first and last mebibyte (see `HASHED_WHOLE`), so that it stays cheap.

    Returns:
        64 hexadecimal digits.
    """
    root, total = Path(folder), hashlib.sha256()
    for file in _model_files(root):
        total.update(f"{file.relative_to(root).as_posix()}\0{file.stat().st_size}\0".encode())
        total.update(_file_hash(file))
    return total.hexdigest()


def _model_files(root: Path) -> Iterator[Path]:
    kept = (".json", ".safetensors", ".model", ".txt")
    for file in sorted(root.rglob("*"), key=lambda p: p.relative_to(root).as_posix()):
        if file.suffix in kept and file.is_file() and not any(p.startswith(".") for p in file.relative_to(root).parts):
            yield file


def _file_hash(file: Path) -> bytes:
    size, mebibyte = file.stat().st_size, 1 << 20
    with file.open("rb") as stream:
        if size <= HASHED_WHOLE:
            return hashlib.file_digest(stream, "sha256").digest()
        digest = hashlib.sha256(stream.read(mebibyte))
        stream.seek(max(mebibyte, size - mebibyte))
        digest.update(stream.read())
        return digest.digest()
