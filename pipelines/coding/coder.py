"""Between pixels and normalised latents: the VAE with what a call's settings and a model's conventions say of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vgen.diffusion.latent_statistics import tone_map
from vgen.engine.memory.coding import coding_within, decoding_peak, encoding_peak
from vgen.pipelines.call.conventions import Convention
from vgen.pipelines.call.noise import draw
from vgen.pipelines.call.settings import GenerationSettings
from vgen.types import LatentShape, VideoShape


@dataclass(frozen=True, eq=False)
class Coder:
    """Encodes and decodes for one pass.

    Attributes:
        vae: the CausalVideoVAE.
        settings: memory, decode timestep and noise, tone map, generators and number of frames.
        convention: whether a posterior is drawn from, and where the decode noise is mixed in.
        dtype: of denormalised latents, before the VAE's own.
    """

    vae: Any
    settings: GenerationSettings
    convention: Convention
    dtype: torch.dtype

    def encode(self, pixels: Tensor, sample_posterior: bool) -> Tensor:
        """Encode clips one by one, within the call's memory.

        Args:
            pixels: [1 or B, 3, F, H, W] in [-1, 1], on the VAE's device.
            sample_posterior: draw from each posterior, with its clip's own generator, or take its mean.
        Returns:
            [1 or B, C, f, h, w], normalised, float32.
        """
        with self._within_memory(VideoShape(*pixels.shape[2:]).latent(self.vae.strides), 1, encode=True):
            posteriors = [self.vae.encode(clip).latent_dist for clip in pixels.to(self.vae.dtype).split(1)]
        generator = self.settings.generator
        if not sample_posterior:
            raw = [posterior.mean for posterior in posteriors]
        elif isinstance(generator, list):
            if len(posteriors) == 1:
                posteriors = posteriors * len(generator)
            raw = [posterior.sample(source) for posterior, source in zip(posteriors, generator, strict=True)]
        else:
            raw = [posterior.sample(generator) for posterior in posteriors]
        return self.vae.normalize(torch.cat(raw).float())

    def decode(self, latents: Tensor) -> Tensor:
        """Decode normalised latents [B, C, f, h, w], float32, to [B, 3, F, H, W], about [-1, 1], float32."""
        video: Tensor | None = None
        done, num_frames = 0, self.settings.num_frames
        for piece in self.decode_in_pieces(latents):
            if piece.shape[2] == num_frames:
                return piece.float()
            if video is None:
                video = piece.new_empty(*piece.shape[:2], num_frames, *piece.shape[3:], dtype=torch.float32)
            video[:, :, done : done + piece.shape[2]] = piece
            done += piece.shape[2]
            del piece  # before the next one is made
        assert video is not None and done == num_frames
        return video

    def decode_in_pieces(self, latents: Tensor) -> Iterator[Tensor]:
        """[B, 3, F, H, W] each, of the VAE's dtype, as the decoder gives them out; see `decode`."""
        raw, timestep = self._raw_latents(latents)
        raw, generator = raw.to(self.vae.dtype), self.settings.generator
        with self._within_memory(LatentShape(*raw.shape[2:]), raw.shape[0]):
            if self.vae.use_slicing and raw.shape[0] > 1:  # one clip after the other, all of them to the end
                yield self.vae.decode(raw, timestep, return_dict=False, generator=generator)[0]
            else:
                yield from self.vae.decode_in_pieces(raw, timestep, generator=generator)

    def _raw_latents(self, latents: Tensor) -> tuple[Tensor, Tensor | None]:
        """Latents as the decoder takes them, with their noise mixed in, and its timestep."""
        settings, compression = self.settings, self.settings.tone_map_compression_ratio
        if not self.vae.config.timestep_conditioning:
            return self.vae.denormalize(tone_map(latents, compression)).to(self.dtype), None
        timestep = scale = self._per_clip(settings.decode_timestep, latents.device)
        if settings.decode_noise_scale is not None:
            scale = self._per_clip(settings.decode_noise_scale, latents.device)
        noise = draw(tuple(latents.shape), settings.generator, latents.device, self.dtype)
        scale = scale.view(-1, 1, 1, 1, 1)
        if self.convention.mix_decode_noise_normalized:
            mixed = torch.lerp(latents, noise.to(latents), scale.to(latents))
            return self.vae.denormalize(tone_map(mixed, compression)).to(self.dtype), timestep
        raw = self.vae.denormalize(tone_map(latents, compression)).to(self.dtype)
        return torch.lerp(raw, noise, scale), timestep

    def _per_clip(self, value: float | list[float], device: torch.device) -> Tensor:
        """One number, or one per prompt, as one per clip: [B]."""
        values = value if isinstance(value, list) else [value]
        tensor = torch.tensor(values, device=device, dtype=self.dtype)
        if len(values) == 1:
            return tensor.expand(self.settings.batch_size).contiguous()
        return tensor.repeat_interleave(self.settings.num_videos_per_prompt)

    def _within_memory(self, shape: LatentShape, batch: int, encode: bool = False) -> AbstractContextManager[None]:
        """Inside, the VAE codes latents of this size within `vae_memory`: as it is set up where that is None."""
        asked = self.settings.vae_memory
        if asked is None:
            return nullcontext()
        budget = asked if isinstance(asked, int) else None
        if budget is None and self.vae.spread is not None:
            budget = self.vae.spread.room()  # the same on all processes, or they would not code in the same pieces
        return coding_within(encoding_peak if encode else decoding_peak, self.vae, shape, batch, budget)
