"""Loading: a name or a folder to a pipeline, ours or diffusers' LTX ones, with errors that say what is wrong."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError, safe_open
from torch import nn

from vgen.errors import CheckpointError
from vgen.hub import resolve_model, weight_files
from vgen.pipelines.conventions import Convention, convention_named, from_model_index


class PipelineLoading(DiffusionPipeline):
    """The part of a pipeline that reads it from disk and knows its conventions and defaults."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        device: torch.device | str | None = None,
        **kwargs: Any,
    ) -> Self:
        """Load a pipeline. Every pipeline of this package loads every folder, also diffusers' LTX-Video ones.

        Args:
            pretrained_model_name_or_path: a folder, or a name that `vgen.hub.resolve_model` knows.
            device: where to put the components.
            **kwargs: as diffusers' own: torch_dtype, variant, device_map, quantization_config, components by name ...
        Raises:
            CheckpointError: an unknown name, or a folder that is incomplete or damaged.
        """
        folder = resolve_model(pretrained_model_name_or_path)
        if "torch_dtype" in kwargs:  # the name that most people know; diffusers' own is now `dtype`
            kwargs["dtype"] = kwargs.pop("torch_dtype")
        bars = diffusers_logging.is_progress_bar_enabled()
        diffusers_logging.disable_progress_bar()
        try:
            pipeline = super().from_pretrained(str(folder), **kwargs)
        except (OSError, SafetensorError, KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"The model in {folder} cannot be loaded: {error}") from error
        finally:
            if bars:
                diffusers_logging.enable_progress_bar()
        if not {"variant", "quantization_config"} & kwargs.keys():
            for name in sorted({"transformer", "vae"} - kwargs.keys()):
                _check_tensors(getattr(pipeline, name), folder / name)
        return pipeline.to(device) if device is not None else pipeline

    @classmethod
    def load_config(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Any:
        """Read model_index.json, with diffusers' LTX classes translated to ours."""
        config = super().load_config(pretrained_model_name_or_path, **kwargs)
        return (from_model_index(config[0]), *config[1:]) if isinstance(config, tuple) else from_model_index(config)

    @property
    def components(self) -> dict[str, Any]:
        """All that another pipeline of this package needs to share this one's models: `Other(**this.components)`."""
        return {**super().components, "convention": self.config.convention, "defaults": self.config.defaults}

    @property
    def parameters(self) -> dict[str, Any]:
        """Nothing: `components` holds them, so that `Other(**this.components, **this.parameters)` works as well."""
        return {}

    @property
    def model_convention(self) -> Convention:
        """The convention of the model, see vgen.pipelines.conventions."""
        return convention_named(self.config.convention)

    @property
    def name_of_model(self) -> str:
        """Name of the folder the pipeline came from, or of its class."""
        path = self.config.get("_name_or_path")
        return Path(path).name if path else type(self).__name__


def _check_tensors(model: nn.Module, folder: Path) -> None:
    """Refuse weights that lack a tensor, which would silently stay random, or hold one that is not the model's."""
    stored: set[str] = set()
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as handle:
            stored |= set(handle.keys())
    expected = set(model.state_dict())
    for keys, what in ((expected - stored, "lack {} tensors"), (stored - expected, "hold {} unknown tensors")):
        if keys:
            shown = ", ".join(sorted(keys)[:5]) + (" ..." if len(keys) > 5 else "")
            raise CheckpointError(
                f"The weights in {folder} {what.format(len(keys))}: {shown}. They do not belong to its config.json, "
                "or are incomplete: copy or fetch the model again."
            )
