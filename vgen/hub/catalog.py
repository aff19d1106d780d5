"""The public models that go by a name: where they are on the Hugging Face hub, what they are and what they need.

Facts only; nothing is looked up, loaded or downloaded here (see vgen.hub.find), and nothing heavy is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vgen.errors import CheckpointError, nearest

REPOSITORY = "Lightricks/LTX-Video"
"""Holds all single files, and a text encoder and tokenizer in folders."""

TEXT_ENCODERS = (REPOSITORY, "PixArt-alpha/PixArt-XL-2-1024-MS")
"""Repositories whose text_encoder/ and tokenizer/ are LTX-Video's (T5-XXL)."""

_PARAMETERS = {"2b": 1.923e9, "13b": 13.04e9}
_VAE_PARAMETERS = {"0.9.0": 0.419e9, "0.9.1": 0.935e9, "0.9.5": 1.247e9}
_TEXT_ENCODER_PARAMETERS = 4.762e9

FOLDER_SIZE: Mapping[str, Any] = {"height": 512, "width": 704, "num_frames": 161, "frame_rate": 25.0}
"""Of a clip where diffusers' LTX pipelines are asked for none."""
MAKERS_SIZE: Mapping[str, Any] = {"height": 704, "width": 1216, "num_frames": 121, "frame_rate": 30.0}
"""Of a clip where Lightricks' own code is asked for none."""
DECODING: Mapping[str, Any] = {"decode_timestep": 0.05, "decode_noise_scale": 0.025}
"""Of decoders that are conditioned on a timestep, from 0.9.1 on."""
_NEGATIVE = {"negative_prompt": "worst quality, inconsistent motion, blurry, jittery, distorted"}
_ORIGINAL_2B = {
    "num_inference_steps": 40,
    "guidance_scale": 3.0,
    "guidance_rescale": 0.7,
    "stg_scale": 1.0,
    "stg_blocks": (19,),
    "stg_mode": "attention_values",
}
_ORIGINAL_13B = {
    "num_inference_steps": 30,
    "guidance_sigmas": (1.0, 0.996, 0.9933, 0.985, 0.9767, 0.9008, 0.618),
    "guidance_scale": (1.0, 1.0, 6.0, 8.0, 6.0, 1.0, 1.0),
    "guidance_rescale": (0.0, 0.0, 0.5, 0.5, 0.0, 0.0, 0.0),
    "cfg_star": True,
    "stg_scale": (0.0, 0.0, 4.0, 4.0, 4.0, 2.0, 1.0),
    "stg_blocks": ((), (11, 25, 35, 39), (22, 35, 39), (28,), (28,), (28,), (28,)),
    "stg_mode": "attention_values",
}
"""As in Lightricks' configuration of the first pass, where a rescaling_scale of 1 means none: 0 here."""
_DEV_2B = {"num_inference_steps": 40, "guidance_scale": 3.0, **_NEGATIVE, "presets": {"original": _ORIGINAL_2B}}
_DEV_13B = {
    "num_inference_steps": 30,
    "guidance_scale": 5.0,
    "upscale_preset": "dev",
    **_NEGATIVE,
    "presets": {"original": _ORIGINAL_13B},
}
DISTILLED_SIGMAS = (1.0, 0.9937, 0.9875, 0.9812, 0.975, 0.9094, 0.725, 0.4219)
"""What the distilled models from 0.9.7 on were trained for, first and second pass together."""
_AS_MADE: Mapping[str, Any] = {"presets": {"original": {}}}
"""Of models whose defaults are the makers' own already."""
_DISTILLED = {"guidance_scale": 1.0, "allowed_inference_steps": DISTILLED_SIGMAS, **_AS_MADE}

_DISTILLED_13B = {**_DISTILLED, "upscale_preset": "distilled-13b"}

_FIRST_LICENCE = "LTX-Video 0.9 (RAIL-M)"
_OPEN_RAIL = "OpenRAIL-M"
_OPEN_WEIGHTS = "LTXV Open Weights"


@dataclass(frozen=True)
class CatalogEntry:
    """One public model.

    Attributes:
        name: what it is asked for by.
        version: 0.9.0 to 0.9.8.
        size: of the transformer, 2b or 13b.
        file: the single file in `REPOSITORY`.
        folder: hub repository of the same model in diffusers' layout, if there is one.
        licence: short name; the text is next to the file.
        defaults: what holds where a caller says nothing, in the words of `vgen.hub.find.model_defaults`: sizes, steps,
            decoding and, of distilled models, everything as the makers chose; of dev models plain classifier-free
            guidance, and under `presets` by name what else can be chosen: "original" is the makers' own guidance,
            which takes a third evaluation of the transformer at most steps.
        fp8: weights made for Lightricks' own kernels.
    """

    name: str
    version: str
    size: str
    file: str
    licence: str
    defaults: Mapping[str, Any] = field(repr=False)
    folder: str | None = None
    fp8: bool = False

    @property
    def generation(self) -> str:
        """Of the VAE: 0.9.0, 0.9.1 or 0.9.5."""
        return self.version if self.version in _VAE_PARAMETERS else "0.9.5"

    @property
    def file_bytes(self) -> int:
        """About the size of the single file."""
        transformer = _PARAMETERS[self.size] * (1 if self.fp8 else 4 if self.version == "0.9.0" else 2)
        return round(transformer + _VAE_PARAMETERS[self.generation] * (4 if self.version == "0.9.0" else 2))

    @property
    def weight_bytes(self) -> int:
        """What transformer and VAE take in bfloat16."""
        return round(2 * (_PARAMETERS[self.size] + _VAE_PARAMETERS[self.generation]))

    @property
    def memory_bytes(self) -> int:
        """What all models take in bfloat16, the text encoder among them; the clip itself comes on top."""
        return self.weight_bytes + round(2 * _TEXT_ENCODER_PARAMETERS)


def _entry(
    name: str, file: str, licence: str, defaults: Mapping[str, Any], folder: str | None = None, length: int = 256
) -> CatalogEntry:
    _, size, version, *_ = name.split("-")
    decoding = {} if version == "0.9.0" else DECODING
    whole = {**MAKERS_SIZE, **decoding, "max_sequence_length": length, **defaults}
    return CatalogEntry(name, version, size, f"{file}.safetensors", licence, whole, folder, fp8=name.endswith("-fp8"))


_ENTRIES = (
    _entry("ltx-2b-0.9.0", "ltx-video-2b-v0.9", _FIRST_LICENCE, _DEV_2B, REPOSITORY, 128),
    _entry("ltx-2b-0.9.1", "ltx-video-2b-v0.9.1", _FIRST_LICENCE, _DEV_2B, None, 128),
    _entry("ltx-2b-0.9.5", "ltx-video-2b-v0.9.5", _OPEN_RAIL, _DEV_2B, "Lightricks/LTX-Video-0.9.5"),
    _entry("ltx-2b-0.9.6-dev", "ltxv-2b-0.9.6-dev-04-25", _OPEN_RAIL, _DEV_2B),
    _entry(
        "ltx-2b-0.9.6-distilled",
        "ltxv-2b-0.9.6-distilled-04-25",
        _OPEN_RAIL,
        {"num_inference_steps": 8, "guidance_scale": 1.0, "stochastic_sampling": True, **_AS_MADE},
    ),
    _entry("ltx-13b-0.9.7-dev", "ltxv-13b-0.9.7-dev", _OPEN_WEIGHTS, _DEV_13B, "Lightricks/LTX-Video-0.9.7-dev"),
    _entry("ltx-13b-0.9.7-dev-fp8", "ltxv-13b-0.9.7-dev-fp8", _OPEN_WEIGHTS, _DEV_13B),
    _entry(
        "ltx-13b-0.9.7-distilled",
        "ltxv-13b-0.9.7-distilled",
        _OPEN_WEIGHTS,
        _DISTILLED,
        "Lightricks/LTX-Video-0.9.7-distilled",
    ),
    _entry("ltx-13b-0.9.7-distilled-fp8", "ltxv-13b-0.9.7-distilled-fp8", _OPEN_WEIGHTS, _DISTILLED),
    _entry("ltx-2b-0.9.8-distilled", "ltxv-2b-0.9.8-distilled", _OPEN_WEIGHTS, _DISTILLED),
    _entry("ltx-2b-0.9.8-distilled-fp8", "ltxv-2b-0.9.8-distilled-fp8", _OPEN_WEIGHTS, _DISTILLED),
    _entry("ltx-13b-0.9.8-dev", "ltxv-13b-0.9.8-dev", _OPEN_WEIGHTS, _DEV_13B),
    _entry("ltx-13b-0.9.8-dev-fp8", "ltxv-13b-0.9.8-dev-fp8", _OPEN_WEIGHTS, _DEV_13B),
    _entry(
        "ltx-13b-0.9.8-distilled",
        "ltxv-13b-0.9.8-distilled",
        _OPEN_WEIGHTS,
        _DISTILLED_13B,
        "Lightricks/LTX-Video-0.9.8-13B-distilled",
    ),
    _entry("ltx-13b-0.9.8-distilled-fp8", "ltxv-13b-0.9.8-distilled-fp8", _OPEN_WEIGHTS, _DISTILLED_13B),
)

CATALOG: Mapping[str, CatalogEntry] = {entry.name: entry for entry in _ENTRIES}
"""All of them by name."""


def entry_named(name: str) -> CatalogEntry:
    """The entry of that name.

    Raises:
        CheckpointError: there is none; names the nearest and all known.
    """
    if name in CATALOG:
        return CATALOG[name]
    hint = nearest(name, CATALOG)
    raise CheckpointError(f"version={name!r} is not known: {f'{hint} ' if hint else ''}Known are {', '.join(CATALOG)}.")


def entry_of_file(path: Path) -> CatalogEntry | None:
    """The entry whose single file has this name, or None."""
    return next((entry for entry in _ENTRIES if entry.file == path.name), None)


def entry_of_repository(repository: str) -> CatalogEntry | None:
    """The entry whose diffusers folder is this hub repository, or None."""
    return next((entry for entry in _ENTRIES if entry.folder == repository), None)


def generic_defaults(generation: str, allowed_inference_steps: Any = None) -> dict[str, Any]:
    """Defaults of a file that is none of the catalog by its name.

    Args:
        generation: of its VAE.
        allowed_inference_steps: from its metadata; a model that states them is distilled.
    """
    entry = CATALOG[{"0.9.0": "ltx-2b-0.9.0", "0.9.1": "ltx-2b-0.9.1"}.get(generation, "ltx-2b-0.9.5")]
    if not allowed_inference_steps:
        return dict(entry.defaults)
    kept = {key: value for key, value in entry.defaults.items() if key not in _DEV_2B}
    return {**kept, "guidance_scale": 1.0, "allowed_inference_steps": allowed_inference_steps, **_AS_MADE}
