"""Numerical conventions as data: what differs between our own models and public LTX-Video weights.

A pipeline looks up what it needs here and branches on nothing else. Folders saved by diffusers' LTX pipelines follow
diffusers exactly (see `from_model_index`); folders of our own models carry the name "vgen". To sample public weights
as Lightricks' own code does, load them with `from_pretrained(folder, convention="original")`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from vgen.errors import CheckpointError
from vgen.hub.catalog import DECODING, FOLDER_SIZE, MAKERS_SIZE


@dataclass(frozen=True)
class Convention:
    """One set of conventions.

    Attributes:
        name: as in model_index.json.
        causal_coordinates: token times of a causal VAE (frame 0 alone, then groups); else evenly spaced.
        mask_text_encoder: the text encoder gets a mask of which tokens are padding.
        schedule: sigmas before the scheduler's own shift; linear-quadratic ones only where it does not shift by tokens.
        stated_schedule: those that the model's own file asks for, whatever its scheduler does; None: it says nothing.
        sample_posterior: given pixels are encoded to a draw from the posterior; else to its mean.
        encode_before_noise: given pixels are encoded (and their draws made) before the noise is drawn.
        draw_as_tokens: the starting noise is drawn in the shape of tokens [B, N, C], not of latents [B, C, f, h, w].
        prefix_latent_frames: of a clip given later than frame 0, how many latent frames become extra tokens (the rest
            lies in place); None: all.
        mix_decode_noise_normalized: noise for a timestep-conditioned decoder is mixed in before denormalising.
        conditions_name: the convention of tasks with conditions anywhere in the clip.
        early_name: the convention of models before 0.9.5, where that is another.
        defaults: what the caller and the model leave out, where it is not what `vgen.request.settings` says last.
    """

    name: str
    causal_coordinates: bool
    mask_text_encoder: bool
    schedule: Literal["linspace", "linear_quadratic"]
    sample_posterior: bool
    encode_before_noise: bool
    draw_as_tokens: bool
    prefix_latent_frames: int | None
    mix_decode_noise_normalized: bool
    conditions_name: str
    defaults: Mapping[str, Any] = field(repr=False)
    early_name: str | None = None
    stated_schedule: str | None = None

    def stated(self, defaults: Mapping[str, Any]) -> Convention:
        """The convention with what a model's own file says of it, see `vgen.io.weights.ltx_configs.stated_facts`.

        Raises:
            CheckpointError: it says what there is not.
        """
        causal, schedule = defaults.get("causal_coordinates"), defaults.get("schedule")
        if causal not in (None, True, False) or schedule not in (None, "linspace", "linear_quadratic"):
            raise CheckpointError(
                f"The model's defaults have causal_coordinates={causal!r} and schedule={schedule!r}: use true or false "
                "for the first, 'linspace' or 'linear_quadratic' for the second, or leave them out."
            )
        changed: dict[str, Any] = {} if causal is None else {"causal_coordinates": causal}
        return replace(self, **changed, stated_schedule=schedule)


NATIVE = Convention(
    name="vgen",
    causal_coordinates=True,
    mask_text_encoder=True,
    schedule="linspace",
    sample_posterior=False,
    encode_before_noise=False,
    draw_as_tokens=False,
    prefix_latent_frames=None,
    mix_decode_noise_normalized=True,
    conditions_name="vgen",
    defaults={},
)
LTX = Convention(
    name="ltx",
    causal_coordinates=False,
    mask_text_encoder=False,
    schedule="linspace",
    sample_posterior=True,
    encode_before_noise=True,
    draw_as_tokens=False,
    prefix_latent_frames=2,
    mix_decode_noise_normalized=False,
    conditions_name="ltx-condition",
    defaults=FOLDER_SIZE,
)
LTX_CONDITION = Convention(
    name="ltx-condition",
    causal_coordinates=True,
    mask_text_encoder=True,
    schedule="linear_quadratic",
    sample_posterior=True,
    encode_before_noise=False,
    draw_as_tokens=False,
    prefix_latent_frames=2,
    mix_decode_noise_normalized=False,
    conditions_name="ltx-condition",
    defaults={**FOLDER_SIZE, "max_sequence_length": 256, "image_cond_noise_scale": 0.15},
)
ORIGINAL = Convention(
    name="original",
    causal_coordinates=True,
    mask_text_encoder=True,
    schedule="linear_quadratic",
    sample_posterior=True,
    encode_before_noise=False,
    draw_as_tokens=True,
    prefix_latent_frames=2,
    mix_decode_noise_normalized=True,
    conditions_name="original",
    defaults={
        **MAKERS_SIZE,
        **DECODING,
        "num_inference_steps": 30,
        "max_sequence_length": 256,
        "image_cond_noise_scale": 0.15,
        "input_crf": 29,
    },
    early_name="original-0.9.0",
)
"""Lightricks' own code, in every task: pass convention="original" when loading public weights. Its schedule is the
shifted one, not clamped, where the scheduler shifts by token count (0.9.0, 0.9.1), and linear-quadratic after."""
ORIGINAL_EARLY = replace(
    ORIGINAL, name="original-0.9.0", causal_coordinates=False, conditions_name="original-0.9.0", early_name=None
)
"""The same for 0.9.0 and 0.9.1, whose configuration does not ask for causal times."""

CONVENTIONS: Mapping[str, Convention] = {
    entry.name: entry for entry in (NATIVE, LTX, LTX_CONDITION, ORIGINAL, ORIGINAL_EARLY)
}

_OF_CLASS = {
    "LTXPipeline": LTX.name,
    "LTXImageToVideoPipeline": LTX.name,
    "LTXConditionPipeline": LTX_CONDITION.name,
    "LTXLatentUpsamplePipeline": None,
}
OF_COMPONENT = {
    "LTXVideoTransformer3DModel": ["vgen", "VideoDiT"],
    "AutoencoderKLLTXVideo": ["vgen", "CausalVideoVAE"],
    "LTXLatentUpsamplerModel": ["vgen", "LatentUpsampler"],
}
"""diffusers' classes, and the library and class that stand for them here."""


def convention_named(name: str) -> Convention:
    """The convention of that name.

    Raises:
        CheckpointError: there is none.
    """
    if name not in CONVENTIONS:
        raise CheckpointError(f"convention={name!r} is not known: use one of {', '.join(CONVENTIONS)}.")
    return CONVENTIONS[name]


def from_model_index(index: Mapping[str, Any]) -> dict[str, Any]:
    """The model_index.json of one of diffusers' LTX pipelines with our model classes, and with the convention that its
    class stands for; every other index as it is.
    """
    name = index.get("_class_name")
    if name not in _OF_CLASS:
        return dict(index)
    ours = {
        key: OF_COMPONENT.get(value[1], value) if isinstance(value, (list, tuple)) and len(value) == 2 else value
        for key, value in index.items()
    }
    convention = _OF_CLASS[name]
    return ours if convention is None else {**ours, "convention": convention}
