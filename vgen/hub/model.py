"""A model's folder or single file, and what its JSON says: nothing is loaded, torch is not imported."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from vgen.errors import CheckpointError
from vgen.hub.find import (
    component_config,
    model_defaults,
    model_hash,
    model_index,
    model_strides,
    resolve_model,
)
from vgen.io.files import read_json
from vgen.io.weights.lora_file import defaults_of_files
from vgen.io.weights.single_file import SingleFile
from vgen.request.request import GenerateRequest, ResolvedRequest
from vgen.request.trained import Trained
from vgen.types import Strides


@dataclass(frozen=True)
class Model:
    """A model that was found and checked.

    Attributes:
        name: as it was asked for.
        folder: its folder, or its single file.
        text_encoder_folder: see `vgen.hub.find.find_text_encoder`; None looks next to the model.
    """

    name: str
    folder: Path
    text_encoder_folder: str | None = None

    @classmethod
    def find(cls, name: str | os.PathLike[str], text_encoder_folder: str | None = None) -> Self:
        """Look up and check a model.

        Raises:
            CheckpointError: see `vgen.hub.find.resolve_model`.
        """
        return cls(os.fspath(name), resolve_model(name), text_encoder_folder)

    @cached_property
    def defaults(self) -> dict[str, Any]:
        """Its own values for what a request leaves out, see `vgen.hub.find.model_defaults`."""
        return model_defaults(self.folder)

    @cached_property
    def strides(self) -> Strides:
        """Pixels per token."""
        return model_strides(self.folder)

    def resolve(self, request: GenerateRequest, video_frames: int | None = None) -> ResolvedRequest:
        """A request with what it leaves out: of its LoRAs, whose headers are read, and of this model.

        Args:
            request: for this model.
            video_frames: see `GenerateRequest.resolve`.
        Raises:
            CheckpointError: a LoRA is missing or damaged.
            RequestError: see `GenerateRequest.resolve`; or two LoRAs were made for different settings.
        """
        return request.resolve({**self.defaults, **defaults_of_files(request.lora or ())}, self.strides, video_frames)

    @cached_property
    def model_hash(self) -> str:
        """Identifies the model by its content."""
        return model_hash(self.folder)

    @cached_property
    def vae_hash(self) -> str:
        """Identifies the VAE by its content."""
        return model_hash(self.folder if self.folder.is_file() else self.folder / "vae")[:16]

    @cached_property
    def scheduler(self) -> dict[str, Any]:
        """The configuration of the scheduler; empty where the folder has none.

        Raises:
            CheckpointError: it is not JSON.
        """
        if self.folder.is_file():
            return dict(SingleFile.open(self.folder).scheduler)
        file = self.folder / "scheduler" / "scheduler_config.json"
        return read_json(file) if file.is_file() else {}

    @cached_property
    def trained(self) -> Trained:
        """What the model states about its training, or its makers publish.

        Raises:
            CheckpointError: the statement makes no sense.
        """
        return Trained.read(model_index(self.folder) or {"convention": "ltx"})

    def component_number(self, kind: str, key: str, default: int) -> int:
        """A whole number of a component's configuration, or `default` where it says none.

        Raises:
            CheckpointError: the configuration is missing, or holds something else there.
        """
        value = component_config(self.folder, kind).get(key, default)
        try:
            return int(value)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{self.folder}: {key} of its {kind} cannot be read: {error}.") from None
