"""The parts of a model one by one, for work that needs no transformer: encoding clips and prompts ahead."""

from __future__ import annotations

import hashlib
import json
import os
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch

from vgen.hub.catalog import CATALOG
from vgen.hub.find import EMBEDDED, find_text_encoder
from vgen.hub.model import Model
from vgen.io.weights.single_file import SingleFile
from vgen.io.weights.weight_files import as_plain
from vgen.models import CausalVideoVAE
from vgen.pipelines.call.conventions import Convention, convention_named, from_model_index
from vgen.pipelines.loading.load import convention_of, load_component
from vgen.pipelines.text.cache import DeferredText, TextCache
from vgen.request.settings import Settings


def lasting_name(name: str | os.PathLike[str]) -> str:
    """A model's name, or the whole path of its folder or file: what is written down to be read from elsewhere."""
    text = os.fspath(name)
    known = text in EMBEDDED or text in CATALOG or not Path(text).expanduser().exists()
    return text if known else str(Path(text).expanduser().resolve())


class ModelParts(Model):
    """A model whose VAE and text encoder can be loaded one by one; its name holds from everywhere."""

    @classmethod
    def find(cls, name: str | os.PathLike[str], text_encoder_folder: str | None = None) -> Self:
        """Look up and check a model, see `Model.find`; names of folders become whole paths."""
        folder = None if text_encoder_folder is None else lasting_name(text_encoder_folder)
        return super().find(lasting_name(name), folder)

    @cached_property
    def call_defaults(self) -> dict[str, Any]:
        """`defaults`; where the model has none the convention's, then those of every call (max_sequence_length)."""
        last = {name: about.last for name, about in Settings.knobs().items() if about.last is not None}
        return {**last, **self.convention.defaults, **self.defaults}

    @cached_property
    def convention(self) -> Convention:
        """How prompts are encoded, among other things."""
        if self.folder.is_file():
            return convention_named(convention_of(SingleFile.open(self.folder)))
        index = from_model_index(json.loads((self.folder / "model_index.json").read_bytes()))
        return convention_named(index.get("convention", "vgen"))

    @cached_property
    def identity(self) -> str:
        """Identifies the model with its text encoder by their content."""
        parts = f"{self.model_hash}|{self.text(TextCache()).identity}"
        return hashlib.sha256(parts.encode()).hexdigest()

    def load_vae(self) -> CausalVideoVAE:
        """The VAE alone, float32, not trainable."""
        if self.folder.is_file():
            vae: Any = load_component(SingleFile.open(self.folder), "vae")
        else:
            with as_plain(self.folder / "vae") as folder:
                vae = CausalVideoVAE.from_pretrained(folder, torch_dtype=torch.float32)
        return vae.eval().requires_grad_(False)

    def text(self, cache: TextCache, dtype: torch.dtype | None = None) -> DeferredText:
        """What encodes prompts, and remembers them."""
        return DeferredText(find_text_encoder(self.folder, self.text_encoder_folder), dtype, cache)
