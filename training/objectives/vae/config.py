"""Parts of a recipe for the VAE's second stage: what sharpens a decoder."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from vgen.training.config.base import Count, Strict


class GanConfig(Strict):
    """A discriminator that sees original and reconstruction and says which is which.

    At every step its loss is scaled so that its gradient at the decoder's last layer is `weight` times that of the
    reconstruction. Until `start_step` the discriminator learns alone. `lr` and `betas` are those of its own optimiser.
    """

    weight: float = Field(default=0.05, gt=0)
    start_step: int = Field(default=0, ge=0)
    lr: float = Field(default=2e-4, gt=0)
    betas: tuple[float, float] = (0.5, 0.9)
    width: Count = 32
    levels: Count = 3


class DenoisingConfig(Strict):
    """The decoder takes a timestep and finishes the last denoising step: it is trained on latents noised up to
    `max_sigma`; a share `clean_share` of the samples stays clean. Validation also decodes at `validation_sigma`."""

    max_sigma: float = Field(default=0.2, gt=0, le=1)
    clean_share: float = Field(default=0.25, ge=0, le=1)
    validation_sigma: float = Field(default=0.05, gt=0, le=1)


class LpipsConfig(Strict):
    """LPIPS as a loss, from weights in a local folder (see docs/metrics.md)."""

    folder: Path
    weight: float = Field(default=0.1, gt=0)
