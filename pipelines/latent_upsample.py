"""Latents or a clip, enlarged without a second pass: diffusers' LTXLatentUpsamplePipeline, and loading an upsampler."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Self

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.video_processor import VideoProcessor
from torch import Tensor

from vgen.errors import CheckpointError, RequestError, ShapeError
from vgen.hub.upsampler import find_upsampler
from vgen.io.weights.weight_files import as_plain
from vgen.models import CausalVideoVAE
from vgen.models.latent_upsampler import LatentUpsampler
from vgen.pipelines.base import VideoPipelineOutput
from vgen.pipelines.call.conventions import LTX, from_model_index
from vgen.pipelines.call.settings import GenerationSettings, Generators
from vgen.pipelines.coding.coder import Coder
from vgen.pipelines.coding.decode import to_output
from vgen.pipelines.coding.pixels import read_frames
from vgen.pipelines.passes.two_pass import TwoPass
from vgen.types import LatentShape, VideoShape


def load_upsampler(
    name_or_path: str | os.PathLike[str],
    *,
    torch_dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> LatentUpsampler:
    """Load a latent upsampler in any of its formats.

    Args:
        name_or_path: see `vgen.hub.upsampler.find_upsampler`.
        torch_dtype: of the weights, None: as stored.
        device: where to put it.
    Raises:
        CheckpointError: nothing is there, or what is there is not an upsampler, incomplete or damaged.
    """
    return LatentUpsampler.from_files(find_upsampler(name_or_path), torch_dtype=torch_dtype, device=device)


class LatentUpsamplePipeline(DiffusionPipeline):
    """A clip, or its latents, at the upsampler's scale.

    Loads folders of diffusers' LTXLatentUpsamplePipeline and its own. What comes out is soft: `TwoPass` refines it.

    Args:
        vae: pixels <-> latents.
        latent_upsampler: made for this VAE.
    """

    model_cpu_offload_seq = ""

    def __init__(self, vae: CausalVideoVAE, latent_upsampler: LatentUpsampler) -> None:
        super().__init__()
        self.register_modules(vae=vae, latent_upsampler=latent_upsampler)
        self.video_processor = VideoProcessor(vae_scale_factor=vae.strides.height)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Self:
        """Load from a folder.

        Args:
            pretrained_model_name_or_path: a folder with a VAE and an upsampler.
            **kwargs: as diffusers' own: torch_dtype, variant, components by name ...
        Raises:
            CheckpointError: incomplete or damaged.
        """
        folder = os.fspath(pretrained_model_name_or_path)
        if "latent_upsampler" not in kwargs:
            find_upsampler(folder)
        if "torch_dtype" in kwargs:
            kwargs["dtype"] = kwargs.pop("torch_dtype")
        variant = kwargs.pop("variant", None)
        try:
            with as_plain(Path(folder), variant) if Path(folder).is_dir() else nullcontext(folder) as place:
                pipeline = super().from_pretrained(str(place), **kwargs)
            pipeline.register_to_config(_name_or_path=folder)
            return pipeline
        except (OSError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"The upsampler in {folder} cannot be loaded: {error}") from error

    @classmethod
    def load_config(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Any:
        """Read model_index.json, with diffusers' LTX classes translated to ours."""
        config = super().load_config(pretrained_model_name_or_path, **kwargs)
        return (from_model_index(config[0]), *config[1:]) if isinstance(config, tuple) else from_model_index(config)

    @torch.no_grad()
    def __call__(
        self,
        video: Any = None,
        latents: Tensor | None = None,
        *,
        adain_factor: float = 0.0,
        tone_map_compression_ratio: float = 0.0,
        decode_timestep: float = 0.0,
        decode_noise_scale: float | None = None,
        generator: Generators = None,
        vae_memory: int | str | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> VideoPipelineOutput | tuple[Any, ...]:
        """Enlarge.

        Args:
            video: a clip that fits the VAE's strides, see VideoCondition.frames; or
            latents: [B, C, f, h, w], normalised, as pipelines give them with output_type "latent".
            adain_factor: see vgen.diffusion.latent_statistics.match_statistics.
            tone_map_compression_ratio: before decoding; does nothing to latents that are returned.
            decode_timestep, decode_noise_scale, vae_memory: see GenerationSettings.
            generator: draws the posterior of `video`, and the noise of a timestep-conditioned decoder.
            output_type: "pil", "np", "pt", "uint8" or "latent", see vgen.pipelines.base.VideoPipelineOutput.
            return_dict: False returns a tuple.
        Returns:
            `.frames`, or a tuple of them.
        Raises:
            RequestError: something does not fit; nothing was computed.
        """
        if (video is None) == (latents is None):
            raise RequestError("Give either video or latents, and not both.")
        settings = GenerationSettings.fill(
            {
                "prompt": "", "generator": generator, "decode_timestep": decode_timestep,
                "decode_noise_scale": decode_noise_scale, "tone_map_compression_ratio": tone_map_compression_ratio,
                "vae_memory": vae_memory, "output_type": output_type,
            },
            LTX.defaults,
        )  # fmt: skip
        channels = self.vae.config.latent_channels
        if latents is not None and (latents.ndim != 5 or latents.shape[1] != channels):
            raise ShapeError(f"latents have shape {tuple(latents.shape)}: they must be [B, {channels}, f, h, w].")
        two_pass = TwoPass(self.latent_upsampler, adain_factor=adain_factor)
        two_pass.check_upsampler(self.vae)
        if latents is None:
            latents = self._encode(video, generator)
        large = two_pass.enlarge(self.vae, latents, self._execution_device)
        frames: Any = large
        if output_type != "latent":
            num_frames, height, width = VideoShape.of_latent(LatentShape(*large.shape[2:]), self.vae.strides)
            settings = settings.replace(num_frames=num_frames, height=height, width=width, prompt=[""] * large.shape[0])
            pixels = Coder(self.vae, settings, LTX, self.vae.dtype).decode(large)
            frames = to_output(pixels, output_type, self.video_processor)
        self.maybe_free_model_hooks()
        return VideoPipelineOutput(frames=frames) if return_dict else (frames,)

    def _encode(self, video: Any, generator: Generators) -> Tensor:
        frames = read_frames(video, "video")
        pixels = frames.permute(1, 0, 2, 3)[None] * 2 - 1
        VideoShape(*pixels.shape[2:]).check(self.vae.strides)
        one = generator[0] if isinstance(generator, list) else generator
        posterior = self.vae.encode(pixels.to(self._execution_device, self.vae.dtype)).latent_dist
        return self.vae.normalize(posterior.sample(one).float())
