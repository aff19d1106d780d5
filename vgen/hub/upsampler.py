"""Latent upsamplers on disk: where one is and what it can do, without importing torch."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vgen.errors import CheckpointError
from vgen.hub.catalog import REPOSITORY
from vgen.hub.find import cached_snapshots
from vgen.io.files import json_object, read_json
from vgen.io.weights.safetensors_file import TensorEntry, read_entries, read_header
from vgen.io.weights.weight_files import weight_files
from vgen.types import Strides

CONFIG_DEFAULTS: Mapping[str, Any] = {
    "in_channels": 128,
    "mid_channels": 512,
    "num_blocks_per_stage": 4,
    "dims": 3,
    "spatial_upsample": True,
    "temporal_upsample": False,
}
"""Every key of a configuration, with the value that a folder may leave out."""

_PUBLISHED = re.compile(r"ltxv-(spatial|temporal)-upscaler-\d[\w.]*")
_FIRST, _ENLARGING = "initial_conv.weight", "upsampler.0.weight"


class UpsamplerFiles(NamedTuple):
    """A latent upsampler, found and checked.

    Attributes:
        path: a safetensors file, or a folder with config.json next to the weights.
        config: every key of `CONFIG_DEFAULTS`.
    """

    path: Path
    config: dict[str, Any]

    @property
    def weights(self) -> list[Path]:
        """The safetensors files."""
        return [self.path] if self.path.is_file() else weight_files(self.path)

    @property
    def channels(self) -> int:
        """Channels of the latents it takes."""
        return self.config["in_channels"]

    @property
    def scale(self) -> Strides:
        """By how much it enlarges time, rows and columns."""
        spatial = 1 + bool(self.config["spatial_upsample"])
        return Strides(1 + bool(self.config["temporal_upsample"]), spatial, spatial)


def find_upsampler(name_or_path: str | os.PathLike[str]) -> UpsamplerFiles:
    """Find a latent upsampler and check what can be checked without loading it.

    Args:
        name_or_path: a safetensors file of Lightricks', a folder with config.json and weights, or the folder of a
            pipeline that holds such a `latent_upsampler` (LTXLatentUpsamplePipeline); if the Hugging Face hub's cache
            holds it, the name of a published file (ltxv-spatial-upscaler-0.9.8) or `owner/name` of a folder.
    Raises:
        CheckpointError: nothing is there, or it is no upsampler, incomplete or damaged; names what is wrong.
    """
    text = os.fspath(name_or_path)
    path = _locate(text)
    if path.is_file():
        return UpsamplerFiles(path, single_file_config(path))
    if not (path / "config.json").is_file() and (path / "latent_upsampler").is_dir():
        path = path / "latent_upsampler"
    config = _folder_config(path)
    read_entries(weight_files(path))
    return UpsamplerFiles(path, config)


def single_file_config(file: Path) -> dict[str, Any]:
    """The configuration of a single file: from its metadata, or from the shapes of its tensors.

    Args:
        file: a safetensors file.
    Returns:
        Every key of `CONFIG_DEFAULTS`.
    Raises:
        CheckpointError: damaged, or not an upsampler.
    """
    entries, metadata = read_header(file)
    if _FIRST not in entries or _ENLARGING not in entries:
        raise CheckpointError(
            f"{file} is not a latent upsampler: it holds no {_FIRST}. Give for instance ltxv-spatial-upscaler-0.9.8."
        )
    config = _sniff(file, entries)
    name = f"{file}: the configuration in its metadata"
    return _read_config(json_object(metadata["config"], name), name, config) if "config" in metadata else config


def _sniff(file: Path, entries: Mapping[str, TensorEntry]) -> dict[str, Any]:
    first, enlarging = entries[_FIRST].shape, entries[_ENLARGING].shape
    if len(first) not in (4, 5) or len(enlarging) not in (4, 5) or not enlarging[1]:
        raise CheckpointError(f"{file}: {_FIRST} {list(first)} is not a convolution of a latent upsampler.")
    factor = enlarging[0] // enlarging[1]
    blocks = {key.split(".")[1] for key in entries if key.startswith("res_blocks.")}
    return {
        "in_channels": first[1],
        "mid_channels": first[0],
        "num_blocks_per_stage": len(blocks),
        "dims": len(first) - 2,
        "spatial_upsample": factor in (4, 8),
        "temporal_upsample": factor in (2, 8),
    }


def _folder_config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        raise CheckpointError(
            f"{folder} is not a latent upsampler: it has neither config.json nor a folder latent_upsampler."
        )
    config = read_json(file)
    if "mid_channels" not in config and "Upsampler" not in str(config.get("_class_name")):
        raise CheckpointError(f"{file} is the configuration of a {config.get('_class_name')}, not of an upsampler.")
    return _read_config(config, str(file), CONFIG_DEFAULTS)


def _read_config(config: Mapping[str, Any], name: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: config.get(key, default) for key, default in defaults.items()}
    for key, value in found.items():
        if not isinstance(value, int) or (value < 1 and not isinstance(value, bool)):
            raise CheckpointError(f"{name}: {key}={value!r} makes no sense.")
    return found


def _locate(text: str) -> Path:
    if not text or "\0" in text:
        raise CheckpointError(f"upscale={text!r} is not a name: give the file or folder of a latent upsampler.")
    path = Path(text).expanduser()
    try:
        if path.exists():
            return path
    except OSError as error:
        raise CheckpointError(f"upscale={text[:80]!r} cannot be looked up: {error.strerror}.") from None
    return _cached(text)


def _cached(text: str) -> Path:
    """A published file by its name, or a hub repository, in the local cache of the Hugging Face hub."""
    name = text.removesuffix(".safetensors")
    if _PUBLISHED.fullmatch(name):
        wanted = [snapshot / f"{name}.safetensors" for snapshot in cached_snapshots(REPOSITORY)]
        fetch = f"{REPOSITORY} {name}.safetensors"
    else:
        wanted, fetch = list(cached_snapshots(text)), text
    found = next((path for path in wanted if path.exists()), None)
    if found is not None:
        return found
    message = f"upscale={text!r:.200} is not there: give the file or folder of a latent upsampler."
    if "/" in fetch and re.fullmatch(r"[\w.-]+/[\w. -]+", fetch):
        message += (
            f" If it is one of the Hugging Face hub, fetch it first with `hf download {fetch}`; nothing is downloaded "
            "by itself."
        )
    raise CheckpointError(message)
