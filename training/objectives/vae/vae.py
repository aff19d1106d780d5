"""Training of the causal video VAE: reconstruction first, then its decoder alone, sharpened."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from vgen.errors import RequestError
from vgen.models import CausalVideoVAE
from vgen.models.vae.inflation import inflate
from vgen.training.config.run import OptimizerConfig
from vgen.training.control import Control
from vgen.training.data.clips import SpriteClips, to_frames, to_pixels
from vgen.training.data.footage.pixel_source import FootageClips
from vgen.training.data.plan import Batch
from vgen.training.ema import Ema
from vgen.training.losses.haar import haar_distance
from vgen.training.losses.lpips import Lpips
from vgen.training.losses.pixels import (
    difference_psnr,
    dissimilarity,
    foreground_weights,
    psnr,
    seam_psnr,
    ssim,
    weighted_l1,
    weighted_square,
)
from vgen.training.model_sources import LOADED, ModelSource
from vgen.training.objectives.base import Coding, Costs, Objective
from vgen.training.objectives.export import forget_origin
from vgen.training.objectives.vae.config import VaeObjectiveConfig
from vgen.training.objectives.vae.discriminator import PairDiscriminator, gan_losses
from vgen.training.objectives.vae.timestep_decoder import noise_latents, with_timestep
from vgen.training.randomness import Keys, generator, key_number
from vgen.training.report.log import save_sheet
from vgen.types import VideoShape

_CHUNK = 16
_SHEET_CLIPS = 4


class VaeObjective(Objective):
    """Weighted L1, Haar L1 and KL, perhaps squared errors, all means; a decoder alone perhaps with GAN and LPIPS.

    Args:
        config: of the recipe.
        clips: where training clips come from (for the latent statistics).
        held_out: validation clips.
        seed: of the recipe; initialises the weights.
        models: where `init` comes from.
    """

    def __init__(
        self,
        config: VaeObjectiveConfig,
        clips: SpriteClips | FootageClips,
        held_out: SpriteClips | FootageClips,
        seed: int,
        models: ModelSource = LOADED,
    ) -> None:
        super().__init__()
        self.config = config
        self.clips = clips
        self.held_out = held_out
        self.vae = build_vae(config, seed, models)
        self.vae.encoder.requires_grad_(config.train == "all")
        if self.vae.decoder.timestep_scale_multiplier is not None:
            self.vae.decoder.timestep_scale_multiplier.requires_grad_(False)  # a constant that is stored as a weight
        self.discriminator: PairDiscriminator | None = None
        if config.gan is not None:
            size, own_seed = (config.gan.width, config.gan.levels), key_number(seed, "discriminator")
            self.discriminator = models.fresh(lambda: PairDiscriminator(*size, seed=own_seed))
        self._judges = {} if config.lpips is None else {"lpips": Lpips(config.lpips.folder)}  # never trained or saved

    def own_optimizers(self) -> dict[str, OptimizerConfig]:
        """The discriminator has one of its own."""
        gan = self.config.gan
        if gan is None:
            return {}
        return {"discriminator.": OptimizerConfig(lr=gan.lr, betas=gan.betas, weight_decay=0.0)}

    def before_step(self, step: int, ema: Ema) -> None:
        """Turn the image-trained average into a VAE that starts well on clips."""
        if step == self.config.inflate_before:
            ema.copy_to(self)
            inflate(self.vae)
            ema.restart(self)

    def prepare(self, batch: Batch, keys: Keys) -> Batch:
        """The batch with "noise" [B, C, f, h, w] of the posterior."""
        rows, *shape = batch["frames"].shape[:4]
        latent = VideoShape(*shape).latent(self.vae.strides)
        return {**batch, "noise": keys.normal("posterior", (rows, self.vae.config.latent_channels, *latent))}

    def loss(self, batch: Batch, keys: Keys) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of one micro-batch {"frames", "masks", "indices"}, prepared or not."""
        batch = batch if "noise" in batch else self.prepare(batch, keys)
        video = to_pixels(batch["frames"])
        posterior = self.vae.encode(video).latent_dist
        noise = batch["noise"].to(posterior.mean)
        latents, timestep = self._noised(posterior.mean + posterior.std * noise, keys)
        restored = self.vae.decode(latents, timestep).sample
        difference = restored.float() - video
        weights = foreground_weights(batch["masks"], self.config.foreground_weight)
        pixel = weighted_l1(difference, weights)
        haar = haar_distance(difference, weights, self.config.haar_levels)
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        kl = 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).mean()
        total = pixel + self.config.haar_weight * haar + self.config.kl_weight * kl
        logs = {"l1": pixel.detach(), "haar": haar.detach(), "kl": kl.detach()}
        if self.config.square_weight:
            square = weighted_square(difference, weights)
            total, logs["square"] = total + self.config.square_weight * square, square.detach()
        if self.config.structure_weight:
            lacking = dissimilarity(video, restored)
            total, logs["structure"] = total + self.config.structure_weight * lacking, lacking.detach()
        if self.config.lpips is not None and "lpips" in self._judges:
            distance = self._judges["lpips"].to(video.device).clips(video, restored)
            total, logs["lpips"] = total + self.config.lpips.weight * distance, distance.detach()
        if self.discriminator is not None and self.config.gan is not None:
            last_layer = self.vae.decoder.conv_out.conv.weight
            active = keys.step >= self.config.gan.start_step
            gan = gan_losses(self.discriminator, video, restored, total, last_layer, self.config.gan.weight, active)
            total, logs = total + gan.total, logs | gan.logs
        return total, logs

    def _noised(self, latents: Tensor, keys: Keys) -> tuple[Tensor, Tensor | None]:
        """Latents as a decoder that finishes the denoising gets them, and its timestep; as they are for any other."""
        if not self.vae.config.timestep_conditioning:
            return latents, None
        batch = latents.shape[0]
        if self.config.denoising is None:
            return latents, torch.zeros(batch, device=latents.device)
        how = self.config.denoising
        draws = keys.rows("decoder sigma", batch, lambda rows, drawn: torch.rand(rows, 2, generator=drawn))
        amounts, clean = draws.unbind(dim=1)
        sigma = torch.where(clean < how.clean_share, 0.0, amounts * how.max_sigma)
        noise = keys.normal("decoder noise", latents.shape)
        sigma = sigma.to(latents)
        return noise_latents(self.vae, latents, noise.to(latents), sigma), sigma

    def rehearse(self, batch: Batch, given: int | None = None) -> Tensor:
        """See Objective; without LPIPS, whose weights are not of this module and must keep their content."""
        judges, self._judges = self._judges, {}
        try:
            return super().rehearse(batch)
        finally:
            self._judges = judges

    def exports(self) -> dict[str, nn.Module]:
        """See Objective."""
        return {"vae": self.vae}

    def costs(self) -> Costs:
        """See Objective."""
        config, canvas = self.config, self.clips.canvas
        batch, frames = min(_CHUNK, config.validation_clips), config.validation_frames
        terms = {name: bool(value) for name, value in config if name.endswith("_weight")}
        return Costs(
            codings=[Coding(self.vae, verb, frames, canvas, batch) for verb in ("encode", "decode")],
            validation={frames: config.validation_clips, 1: 4 * config.validation_clips},
            by_tokens=False,
            settings=f"{terms} {config.haar_levels} {config.gan} {config.lpips} {config.train}",
        )

    def tokens(self, batch: Batch) -> int:
        """Latent positions of the clips."""
        rows, frames, height, width = batch["frames"].shape[:4]
        strides = self.vae.strides
        return rows * (1 + (frames - 1) // strides.temporal) * (height // strides.height) * (width // strides.width)

    def validate(self, step: int, folder: Path, control: Control) -> dict[str, float]:
        """PSNR of held-out images and clips, whole and on the objects, and a sheet: originals over reconstructions."""
        images, restored_images, masks = self._reconstruct(4 * self.config.validation_clips, 1, control)
        measured = {
            "image_psnr": psnr(images, restored_images),
            "image_object_psnr": psnr(images, restored_images, masks),
        }
        clips, restored, masks = self._reconstruct(self.config.validation_clips, self.config.validation_frames, control)
        measured |= {"psnr": psnr(clips, restored), "object_psnr": psnr(clips, restored, masks)}
        measured |= {"ssim": ssim(clips, restored), "first_frame_psnr": psnr(clips[:, :1], restored[:, :1])}
        measured["difference_psnr"] = difference_psnr(clips, restored)
        if clips.shape[1] > 1:
            measured["seam_psnr"] = seam_psnr(clips, restored, self.vae.strides.temporal)
        if self.config.denoising is not None:
            sigma = self.config.denoising.validation_sigma
            settings = self.config.validation_clips, self.config.validation_frames, control, sigma
            _, finished, _ = self._reconstruct(*settings)
            measured |= {f"psnr_from_{sigma:g}": psnr(clips, finished)}
        shown = [clip for index in range(min(_SHEET_CLIPS, len(clips))) for clip in (clips[index], restored[index])]
        save_sheet(folder / f"step-{step:08d}.png", [clip.numpy() for clip in shown])
        return measured

    def finish(self, folder: Path, dtype: torch.dtype, control: Control) -> dict[str, float]:
        """Measure the latent statistics on training clips, store them in the model, and save it."""
        self.eval()
        if self.config.train == "all":
            mean, std = self.latent_statistics(control)
            self.vae.latents_mean.copy_(mean)
            self.vae.latents_std.copy_(std)
        mean, std = self.vae.latents_mean, self.vae.latents_std
        saved = copy.deepcopy(self.vae).to(dtype)
        saved.save_pretrained(folder)
        forget_origin(folder / "config.json")
        return {"latents_mean_abs": float(mean.abs().mean()), "latents_std_mean": float(std.mean())}

    @torch.no_grad()
    def latent_statistics(self, control: Control) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each latent channel over training clips: two [C] tensors."""
        total = square = torch.zeros((), dtype=torch.float64, device=self._device)
        count = 0
        for begin in range(0, self.config.statistics_clips, _CHUNK):
            control.poll()
            indices = list(range(begin, min(begin + _CHUNK, self.config.statistics_clips)))
            frames = self.clips.stack(indices, self.config.validation_frames)["frames"].to(self._device)
            latents = self.vae.encode(to_pixels(frames)).latent_dist.mean.double()
            total = total + latents.sum(dim=(0, 2, 3, 4))
            square = square + latents.square().sum(dim=(0, 2, 3, 4))
            count += latents.shape[0] * latents.shape[2:].numel()
        mean = total / count
        return mean, (square / count - mean.square()).clamp_min(1e-12).sqrt()

    @torch.no_grad()
    def _reconstruct(
        self, count: int, num_frames: int, control: Control, sigma: float = 0.0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Held-out clips, what comes back of them (from latents noised to `sigma`), and the masks of their objects."""
        originals, restored, masks = [], [], []
        for begin in range(0, count, _CHUNK):
            control.poll()
            batch = self.held_out.stack(list(range(begin, min(begin + _CHUNK, count))), num_frames)
            latents = self.vae.encode(to_pixels(batch["frames"].to(self._device))).latent_dist.mode()
            timestep = None
            if self.vae.config.timestep_conditioning:
                timestep = torch.full((latents.shape[0],), sigma, device=latents.device)
                noise = torch.randn(latents.shape, generator=generator(0, "decoder noise", begin)).to(latents)
                latents = noise_latents(self.vae, latents, noise, timestep)
            restored.append(to_frames(self.vae.decode(latents, timestep).sample).cpu())
            originals.append(batch["frames"])
            masks.append(batch["masks"])
        return torch.cat(originals), torch.cat(restored), torch.cat(masks)

    @property
    def _device(self) -> torch.device:
        return next(self.vae.parameters()).device


def build_vae(config: VaeObjectiveConfig, seed: int, models: ModelSource = LOADED) -> CausalVideoVAE:
    """A fresh VAE from the recipe's `model`, or the one saved in `init`."""
    if config.init is not None:
        vae = models.vae(config.init)
        return vae if config.denoising is None else models.fresh(lambda: with_timestep(vae))
    try:
        return models.fresh(
            lambda: CausalVideoVAE(**config.model), lambda made: made.init_weights(generator(seed, "weights"))
        )
    except TypeError as error:
        raise RequestError(f"objective.model does not fit CausalVideoVAE: {error}") from None
