"""Loading: a name or a folder to a pipeline, ours or diffusers' LTX ones, with errors that say what is wrong."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError

from vgen.errors import CheckpointError
from vgen.hub import resolve_model
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
