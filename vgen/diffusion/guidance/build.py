"""From the settings of a call to its guidance: who adds a kind of guidance adds it here."""

from __future__ import annotations

from typing import Any

from vgen.diffusion.guidance.classifier_free import ClassifierFreeGuidance
from vgen.diffusion.guidance.composed import ComposedGuidance
from vgen.diffusion.guidance.protocol import Guidance
from vgen.diffusion.guidance.spatiotemporal import SpatioTemporalGuidance
from vgen.diffusion.guidance.values import BySigma
from vgen.errors import RequestError
from vgen.request.settings import Settings

_JUST_ABOVE = 1e-5
"""So that a step at the upper end itself still has guidance."""


def build_guidance(settings: Settings, own: Guidance | None = None) -> Guidance:
    """The guidance of a call: the caller's strategy, or what the settings say.

    Args:
        settings: of the call, filled in.
        own: a strategy in place of all of them.
    Raises:
        RequestError: settings that contradict each other, or lists that do not fit.
    """
    if settings.guidance_interval is not None:
        return _within(settings, own, *settings.guidance_interval)
    if own is not None:
        return own

    def values(name: str) -> Any:
        value = getattr(settings, name)
        by_sigma = settings.guidance_sigmas is not None and isinstance(value, (list, tuple))
        if name == "stg_blocks" and by_sigma:
            by_sigma = any(isinstance(entry, (list, tuple)) for entry in value)
        return BySigma(settings.guidance_sigmas or (), value) if by_sigma else value

    scale, rescale = values("guidance_scale"), values("guidance_rescale")
    if not isinstance(settings.stg_scale, (list, tuple)) and settings.stg_scale == 0:
        return ClassifierFreeGuidance(scale, rescale, settings.cfg_star)
    assert settings.stg_blocks is not None  # as settings are filled in
    spatiotemporal = SpatioTemporalGuidance(values("stg_blocks"), values("stg_scale"), settings.stg_mode)
    return ComposedGuidance((ClassifierFreeGuidance(scale, star=settings.cfg_star), spatiotemporal), rescale)


def _within(settings: Settings, own: Guidance | None, low: float, high: float) -> Guidance:
    """Classifier-free guidance between two sigmas and none elsewhere (Kynkäänniemi et al. 2024, eq. 5)."""
    for name, value in (
        ("guidance", own), ("guidance_sigmas", settings.guidance_sigmas), ("stg_scale", settings.stg_scale or None),
    ):  # fmt: skip
        if value is not None:
            raise RequestError(f"guidance_interval={low:g},{high:g} and {name} contradict each other: leave one out.")
    if isinstance(settings.guidance_scale, (list, tuple)) or isinstance(settings.guidance_rescale, (list, tuple)):
        raise RequestError(
            f"guidance_interval={low:g},{high:g} needs one guidance_scale and one guidance_rescale, not a list."
        )
    above, within, below = 1.0, settings.guidance_scale, 1.0
    scale = BySigma((high + _JUST_ABOVE, low, 0.0), (above, within, below)) if low > 0 else BySigma(
        (high + _JUST_ABOVE, 0.0), (above, within)
    )  # fmt: skip
    return ClassifierFreeGuidance(scale, settings.guidance_rescale, settings.cfg_star)
