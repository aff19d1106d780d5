"""The networks: VideoDiT, CausalVideoVAE and LatentUpsampler, each loaded when first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vgen.models.latent_upsampler import LatentUpsampler
    from vgen.models.transformer.video_dit import VideoDiT
    from vgen.models.vae.video_vae import CausalVideoVAE

_HOMES = {
    "CausalVideoVAE": "vgen.models.vae.video_vae",
    "LatentUpsampler": "vgen.models.latent_upsampler",
    "VideoDiT": "vgen.models.transformer.video_dit",
}

__all__ = ["CausalVideoVAE", "LatentUpsampler", "VideoDiT"]


def __getattr__(name: str) -> Any:
    """Import a model where it is first asked for (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
