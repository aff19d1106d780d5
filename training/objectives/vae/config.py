"""The part of a recipe that trains a VAE."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from vgen.training.config.base import Count, Strict
from vgen.training.config.run import RunConfig
from vgen.training.objectives.registry import ObjectiveConfig


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


class VaeObjectiveConfig(ObjectiveConfig):
    """Reconstruction training of a causal video VAE. `model` holds the arguments of CausalVideoVAE.

    `inflate_before` is the step (counted from 0) before which the averaged weights, until then trained on images, are
    rearranged for clips. `train: decoder` leaves the encoder and the latent statistics as they are, so that latents,
    and transformers trained on them, keep their meaning. `square_weight` adds the squared error, which PSNR goes by, to
    the absolute one, `structure_weight` what SSIM lacks of 1. `gan` and `denoising` sharpen a decoder trained alone.
    """

    kind: Literal["vae"]
    model: dict[str, Any]
    init: Path | None = None
    train: Literal["all", "decoder"] = "all"
    inflate_before: int | None = Field(default=None, ge=0)
    square_weight: float = Field(default=0.0, ge=0)
    structure_weight: float = Field(default=0.0, ge=0)
    haar_weight: float = Field(default=0.2, ge=0)
    haar_levels: Count = 3
    kl_weight: float = Field(default=1e-6, ge=0)
    gan: GanConfig | None = None
    denoising: DenoisingConfig | None = None
    lpips: LpipsConfig | None = None
    foreground_weight: float = Field(default=9.0, ge=1)
    validation_clips: Count = 16
    validation_frames: Count = 17
    statistics_clips: Count = 256

    @model_validator(mode="after")
    def _check_trained(self) -> VaeObjectiveConfig:
        if self.train == "decoder" and (self.init is None or self.inflate_before is not None):
            raise ValueError("train='decoder' needs init=FOLDER with a trained encoder, and no inflate_before")
        for name in ("gan", "denoising"):
            if self.train == "all" and getattr(self, name) is not None:
                raise ValueError(f"{name} is for a decoder trained alone, once the encoder is done: train='decoder'")
        return self

    def check(self, run: RunConfig) -> None:
        """See ObjectiveConfig."""
        if run.sharding == "fsdp" and self.inflate_before is not None:
            raise ValueError("sharding='fsdp' cannot rearrange weights; train the pictures first, then use init")

    def tiny(self) -> dict[str, Any]:
        """See ObjectiveConfig."""
        inflated = {} if self.inflate_before is None else {"inflate_before": 1}
        return {"validation_clips": 2, "statistics_clips": 4, **inflated}
