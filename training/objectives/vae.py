"""Reconstruction training of the causal video VAE."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor

from vgen.errors import RequestError
from vgen.models import CausalVideoVAE
from vgen.models.inflation import inflate
from vgen.training.config import VaeObjectiveConfig
from vgen.training.control import Control
from vgen.training.data.clips import SpriteClips, to_frames, to_pixels
from vgen.training.data.plan import Batch
from vgen.training.ema import Ema
from vgen.training.losses.haar import haar_distance
from vgen.training.losses.pixels import foreground_weights, psnr, ssim, weighted_l1
from vgen.training.objectives.base import Objective
from vgen.training.randomness import Keys, generator
from vgen.training.sheets import save_sheet

_CHUNK = 16
_SHEET_CLIPS = 4


class VaeObjective(Objective):
    """Weighted L1 + Haar L1 + KL, all means.

    Args:
        config: of the recipe.
        clips: where training clips come from (for the latent statistics).
        held_out: validation clips.
        seed: of the recipe; initialises the weights.
    """

    def __init__(self, config: VaeObjectiveConfig, clips: SpriteClips, held_out: SpriteClips, seed: int) -> None:
        super().__init__()
        self.config = config
        self.clips = clips
        self.held_out = held_out
        self.vae = build_vae(config, seed)
        self.vae.encoder.requires_grad_(config.train == "all")

    def before_step(self, step: int, ema: Ema) -> None:
        """Turn the image-trained average into a VAE that starts well on clips."""
        if step == self.config.inflate_before:
            ema.copy_to(self)
            inflate(self.vae)
            ema.restart(self)

    def loss(self, batch: Batch, keys: Keys) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of one micro-batch {"frames", "masks", "indices"}."""
        video = to_pixels(batch["frames"])
        posterior = self.vae.encode(video).latent_dist
        noise = keys.normal("posterior", posterior.mean.shape).to(posterior.mean)
        restored = self.vae.decode(posterior.mean + posterior.std * noise).sample
        difference = restored.float() - video
        weights = foreground_weights(batch["masks"], self.config.foreground_weight)
        pixel = weighted_l1(difference, weights)
        haar = haar_distance(difference, weights, self.config.haar_levels)
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        kl = 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).mean()
        total = pixel + self.config.haar_weight * haar + self.config.kl_weight * kl
        return total, {"l1": pixel.detach(), "haar": haar.detach(), "kl": kl.detach()}

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
        measured |= {
            "psnr": psnr(clips, restored),
            "object_psnr": psnr(clips, restored, masks),
            "ssim": ssim(clips, restored),
            "first_frame_psnr": psnr(clips[:, :1], restored[:, :1]),
            "difference_psnr": _difference_psnr(clips, restored),
        }
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
        return {"latents_mean_abs": float(mean.abs().mean()), "latents_std_mean": float(std.mean())}

    @torch.no_grad()
    def latent_statistics(self, control: Control) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each latent channel over training clips: two [C] tensors."""
        total = square = count = 0.0
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
    def _reconstruct(self, count: int, num_frames: int, control: Control) -> tuple[Tensor, Tensor, Tensor]:
        originals, restored, masks = [], [], []
        for begin in range(0, count, _CHUNK):
            control.poll()
            batch = self.held_out.stack(list(range(begin, min(begin + _CHUNK, count))), num_frames)
            latents = self.vae.encode(to_pixels(batch["frames"].to(self._device))).latent_dist.mode()
            restored.append(to_frames(self.vae.decode(latents).sample).cpu())
            originals.append(batch["frames"])
            masks.append(batch["masks"])
        return torch.cat(originals), torch.cat(restored), torch.cat(masks)

    @property
    def _device(self) -> torch.device:
        return next(self.vae.parameters()).device


def build_vae(config: VaeObjectiveConfig, seed: int) -> CausalVideoVAE:
    """A fresh VAE from the recipe's `model`, or the one saved in `init`."""
    if config.init is not None:
        return CausalVideoVAE.from_pretrained(config.init, torch_dtype=torch.float32)
    try:
        vae = CausalVideoVAE(**config.model)
    except TypeError as error:
        raise RequestError(f"objective.model does not fit CausalVideoVAE: {error}") from None
    vae.init_weights(generator(seed, "weights"))
    return vae


def _difference_psnr(clips: Tensor, restored: Tensor) -> float:
    """PSNR of the frame-to-frame differences: what flicker costs."""
    true, made = clips.double().diff(dim=1), restored.double().diff(dim=1)
    error = float((true - made).square().mean()) if true.numel() else 0.0
    return 10 * torch.log10(torch.tensor(255.0**2 / max(error, 1e-10))).item()
