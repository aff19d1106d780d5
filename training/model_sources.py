"""Where a run's models come from: weights on disk, or, for a dry run, configurations alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase, T5Config, T5EncoderModel

from vgen.errors import CheckpointError
from vgen.hub.find import resolve_model
from vgen.io.weights.single_file import COMPONENTS, SingleFile
from vgen.models import CausalVideoVAE, VideoDiT
from vgen.models.empty import empty_model
from vgen.pipelines.text_to_video import TextToVideoPipeline
from vgen.training.data.latents import encoder_hash

Model = TypeVar("Model", bound=nn.Module)


class ModelSource:
    """Models with their weights."""

    has_weights = True

    def knows(self, place: Path) -> bool:
        """Whether there is a model at a place."""
        return any((place / file).is_file() for file in ("config.json", "model_index.json"))

    def encoder_hash(self, vae: CausalVideoVAE, place: Path) -> str:
        """Names the encoder of the VAE of a folder, see `vgen.training.data.latents`."""
        return encoder_hash(vae)

    def fresh(self, make: Callable[[], Model], initialize: Callable[[Model], object] = lambda model: None) -> Model:
        """A model that is not trained yet."""
        model = make()
        initialize(model)
        return model

    def vae(self, place: Path) -> CausalVideoVAE:
        """The VAE of a folder, float32."""
        return CausalVideoVAE.from_pretrained(place, torch_dtype=torch.float32)

    def transformer(self, pipeline: Path) -> VideoDiT:
        """The transformer of a pipeline folder, float32."""
        return VideoDiT.from_pretrained(pipeline / "transformer", torch_dtype=torch.float32)

    def text_encoder(self, pipeline: Path) -> T5EncoderModel:
        """The text encoder of a pipeline folder, float32."""
        return T5EncoderModel.from_pretrained(pipeline / "text_encoder", dtype=torch.float32)

    def tokenizer(self, pipeline: Path) -> PreTrainedTokenizerBase:
        """The tokenizer of a pipeline folder."""
        return AutoTokenizer.from_pretrained(pipeline / "tokenizer")

    def pipeline(self, name: str, **loading: Any) -> TextToVideoPipeline:
        """A whole model; `loading` as for `TextToVideoPipeline.from_pretrained`."""
        return TextToVideoPipeline.from_pretrained(name, **loading)

    def to(self, model: Model, device: torch.device | str) -> Model:
        """The model on a device."""
        return model.to(device)


LOADED: Final = ModelSource()


class ConfigSource(ModelSource):
    """Models on the meta device, built from configurations: they have shapes and no weights.

    Args:
        make: builds, from configurations as well, what a folder that is not there yet would hold, by the names of a
            pipeline's components; None where it does not know.
    """

    has_weights = False

    def __init__(self, make: Callable[[Path], Mapping[str, nn.Module] | None] = lambda place: None) -> None:
        self.make = make
        self.made: dict[Path, dict[str, Any]] = {}

    def knows(self, place: Path) -> bool:
        """Whether there is a model at a place, or can be built as if there were."""
        if place not in self.made and not super().knows(place):
            made = self.make(place)
            if made is None:
                return False
            self.add(place, made)
        return True

    def add(self, place: Path, parts: Mapping[str, nn.Module]) -> None:
        """Let models like these be at a place, by the names of a pipeline's components."""
        self.made[place] = {name: part.config for name, part in parts.items()}

    def encoder_hash(self, vae: CausalVideoVAE, place: Path) -> str:
        """See ModelSource; of one that is not there yet, nothing is cached."""
        return encoder_hash(super().vae(place)) if super().knows(place) else "none"

    def fresh(self, make: Callable[[], Model], initialize: Callable[[Model], object] = lambda model: None) -> Model:
        """See ModelSource; nothing is initialised."""
        with torch.device("meta"):
            return make()

    def vae(self, place: Path) -> CausalVideoVAE:
        """See ModelSource."""
        return self._empty(CausalVideoVAE, place, "vae", "")

    def transformer(self, pipeline: Path) -> VideoDiT:
        """See ModelSource."""
        return self._empty(VideoDiT, pipeline, "transformer")

    def text_encoder(self, pipeline: Path) -> T5EncoderModel:
        """See ModelSource."""
        config = self._config(pipeline, "text_encoder", "text_encoder")
        with torch.device("meta"):
            return T5EncoderModel(config if isinstance(config, T5Config) else T5Config(**config))

    def tokenizer(self, pipeline: Path) -> PreTrainedTokenizerBase:
        """See ModelSource; the embedded model's in the place of one that is not there yet."""
        return super().tokenizer(pipeline) if (pipeline / "tokenizer").is_dir() else embedded_tokenizer()

    def pipeline(self, name: str, **loading: Any) -> TextToVideoPipeline:
        """See ModelSource; the VAE has its weights, which decide what is given, the others have none."""
        place = resolve_model(name)
        if place.is_file():
            file = SingleFile.open(place)
            transformer = empty_model(COMPONENTS["transformer"].class_name, file.part("transformer").config)
        else:
            transformer = self.transformer(place)
            if "text_cache" not in loading and (place / "text_encoder").is_dir():
                loading["text_encoder"] = self.text_encoder(place)
        dtype = loading.get("torch_dtype")
        loading["transformer"] = transformer if dtype is None else nn.Module.to(transformer, dtype)
        loading.pop("device", None)
        return TextToVideoPipeline.from_pretrained(name, **loading)

    def to(self, model: Model, device: torch.device | str) -> Model:
        """The model as it is."""
        return model

    def _config(self, place: Path, name: str, folder: str) -> Any:
        """Of a component in its folder, or of what is made in the place of a folder that is missing."""
        if not (place / folder / "config.json").is_file() and self.knows(place):
            config = self.made.get(place, {}).get(name)
            if config is not None:
                return config
        return _read_config(place / folder)

    def _empty(self, kind: type[Model], place: Path, name: str, folder: str | None = None) -> Model:
        model: Any = empty_model(kind.__name__, self._config(place, name, name if folder is None else folder))
        return model.train()


@lru_cache(maxsize=1)
def embedded_tokenizer() -> PreTrainedTokenizerBase:
    """The tokenizer of the embedded model."""
    return AutoTokenizer.from_pretrained(Path(str(files("vgen.assets"))) / "sprites" / "tokenizer")


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / "config.json").read_bytes()))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / 'config.json'} cannot be read: {error}") from None
