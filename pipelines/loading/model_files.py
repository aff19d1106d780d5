"""The parts of a model one by one, for work that needs no transformer: encoding clips and prompts ahead."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from vgen.hub.catalog import CATALOG
from vgen.hub.find import EMBEDDED, find_text_encoder, model_defaults, model_hash, model_strides, resolve_model
from vgen.io.weights.single_file import SingleFile
from vgen.io.weights.weight_files import as_plain
from vgen.models import CausalVideoVAE
from vgen.pipelines.call.conventions import Convention, convention_named, from_model_index
from vgen.pipelines.loading.load import convention_of, load_component
from vgen.pipelines.text.cache import DeferredText, TextCache
from vgen.types import Strides


def lasting_name(name: str | os.PathLike[str]) -> str:
    """A model's name, or the whole path of its folder or file: what is written down to be read from elsewhere."""
    text = os.fspath(name)
    known = text in EMBEDDED or text in CATALOG or not Path(text).expanduser().exists()
    return text if known else str(Path(text).expanduser().resolve())


@dataclass(frozen=True)
class ModelParts:
    """A model's folder or single file, of which nothing is loaded yet.

    Attributes:
        name: as it was asked for.
        place: the folder or file.
        text_encoder_folder: see `find_text_encoder`; None looks where the model lies.
    """

    name: str
    place: Path
    text_encoder_folder: str | None = None

    @classmethod
    def find(cls, name: str | os.PathLike[str], text_encoder_folder: str | None = None) -> ModelParts:
        """Look up and check a model.

        Raises:
            CheckpointError: see `resolve_model`.
        """
        folder = None if text_encoder_folder is None else lasting_name(text_encoder_folder)
        return cls(lasting_name(name), resolve_model(name), folder)

    @cached_property
    def defaults(self) -> dict[str, Any]:
        """height, width, num_frames, frame_rate ... as far as the model says them."""
        return {**self.convention.defaults, **model_defaults(self.place)}

    @cached_property
    def token_strides(self) -> Strides:
        """Pixels per token."""
        return model_strides(self.place)

    @cached_property
    def convention(self) -> Convention:
        """How prompts are encoded, among other things."""
        if self.place.is_file():
            return convention_named(convention_of(SingleFile.open(self.place)))
        index = from_model_index(json.loads((self.place / "model_index.json").read_bytes()))
        return convention_named(index.get("convention", "vgen"))

    @cached_property
    def vae_hash(self) -> str:
        """Says which VAE this is, by its content."""
        return model_hash(self.place if self.place.is_file() else self.place / "vae")[:16]

    @cached_property
    def model_hash(self) -> str:
        """Says which model this is, by its content."""
        return model_hash(self.place)

    @cached_property
    def identity(self) -> str:
        """Says which model this is with its text encoder, by their content."""
        parts = f"{self.model_hash}|{self.text(TextCache()).identity}"
        return hashlib.sha256(parts.encode()).hexdigest()

    def load_vae(self) -> CausalVideoVAE:
        """The VAE alone, float32, not trainable."""
        if self.place.is_file():
            vae: Any = load_component(SingleFile.open(self.place), "vae")
        else:
            with as_plain(self.place / "vae") as folder:
                vae = CausalVideoVAE.from_pretrained(folder, torch_dtype=torch.float32)
        return vae.eval().requires_grad_(False)

    def text(self, cache: TextCache, dtype: torch.dtype | None = None) -> DeferredText:
        """What encodes prompts, and remembers them."""
        return DeferredText(find_text_encoder(self.place, self.text_encoder_folder), dtype, cache)
