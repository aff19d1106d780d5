"""A teacher: a pipeline whose samples are kept at each step that a student will take."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vgen.diffusion.tokens import pack, unpack
from vgen.engine.device import DTYPES
from vgen.errors import RequestError
from vgen.pipelines import ImageToVideoPipeline, TextToVideoPipeline
from vgen.pipelines.call.schedule_and_guidance import set_schedule
from vgen.pipelines.coding.given_pixels import VideoCondition
from vgen.training.control import Control
from vgen.training.data.clips import to_frames
from vgen.training.objectives.distill.config import TrajectoryConfig
from vgen.training.precision import computes_bfloat16


class Layout(NamedTuple):
    """Tokens of a task: `strength` [T], 1 where given; `coordinates` [3, T]; how many are extra, before the video's."""

    strength: Tensor
    coordinates: Tensor
    num_extra: int


class Teacher:
    """Integrates samples of a pipeline, through its own denoising loop.

    Args:
        pipeline: of any folder; its defaults say size and frame rate, and what the caller leaves out.
        num_steps: of the student; the grid is the schedule that the pipeline would take for that many.
        config: substeps and number format.
        guidance_scale: None takes the pipeline's default.
    Raises:
        RequestError: drafts are asked for, and the schedule does not pass through the grid.
    Attributes:
        grid: the student's sigmas, num_steps of them, without the final 0.
        guidance_scale: of the teacher.
    """

    def __init__(
        self,
        pipeline: TextToVideoPipeline,
        num_steps: int,
        config: TrajectoryConfig,
        guidance_scale: float | None = None,
    ) -> None:
        self.pipeline = pipeline
        self.config = config
        self.settings = pipeline.fill_settings({"prompt": "", "guidance_scale": guidance_scale})
        self.guidance_scale = self.settings.guidance_scale
        self.grid = self._schedule(num_steps)
        self.fine = self._fine_schedule()

    def describe(self) -> str:
        """What decides a trajectory besides the weights, the prompt and the noise."""
        settings = self.settings
        size = (settings.height, settings.width, settings.frame_rate, settings.max_sequence_length)
        text = (self.guidance_scale, settings.guidance_rescale, settings.negative_prompt)
        described = f"{self.grid}|{self.fine}|{size}|{text}|{self.config.dtype}"
        return f"{described}|draft {self.config.draft_steps}" if self.config.draft_steps else described

    def layout(self, task: str, num_frames: int) -> Layout:
        """Where the tokens of a task lie, and which are given."""
        pipeline, settings = self._pipeline(task), self._settings(num_frames, prompt="")
        picture = torch.zeros(3, self.settings.height, self.settings.width)
        filled = pipeline.fill_settings(settings)
        shape, given = pipeline.check_inputs(filled, [VideoCondition(picture)] if task == "first" else ())
        _, known = pipeline.prepare_latents(filled, shape, given, pipeline.vae.device)
        return Layout(known.strength[0].float().cpu(), known.coordinates[0].cpu(), known.num_extra)

    def noise(self, num_frames: int, sources: list[torch.Generator]) -> Tensor:
        """Noise [B, C, f, h, w] for clips of that length, one generator a clip."""
        filled = self.pipeline.fill_settings(self._settings(num_frames, prompt=""))
        shape, _ = self.pipeline.check_inputs(filled)
        channels = self.pipeline.vae.config.latent_channels
        return torch.stack([torch.randn(channels, *shape, generator=source) for source in sources])

    @torch.no_grad()
    def integrate(
        self, prompts: list[str], noise: Tensor, control: Control, pictures: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Trajectories of a batch.

        Args:
            prompts: B of them.
            noise: [B, C, f, h, w].
            control: asked at every step whether to stop.
            pictures: [B, 3, H, W] in [0, 1], the given first frames; None gives none.
        Returns:
            "states" float32 [B, num_steps + 1, T, C], the last the finished one; "prompt_embeds" [B, L, D];
            "attention_mask" bool [B, L].
        Raises:
            StopRequested: asked to stop.
        """
        settings, device = self.settings, self.pipeline._execution_device
        text = self.pipeline.encode_prompt(
            prompts, settings.negative_prompt, max_sequence_length=settings.max_sequence_length, device=device
        )
        states: list[Tensor] = []

        def keep(pipeline: Any, index: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Any]:
            control.poll()
            own = index - (pipeline.num_timesteps - len(self.fine))  # those of drafts come first
            if own >= 0 and (own + 1) % self.config.substeps == 0:
                states.append(tensors["latents"].float().cpu())
            return {}

        num_frames = 1 + (noise.shape[2] - 1) * self.pipeline.vae.strides.temporal
        drafted = self.config.draft_steps > 0 and pictures is None and num_frames > 1
        pipeline = self._pipeline("text" if pictures is None else "first")
        dtype = DTYPES[self.config.dtype]
        with torch.autocast(device.type, dtype, enabled=dtype is torch.bfloat16 and computes_bfloat16(device)):
            pipeline(
                **({} if pictures is None else {"image": pictures}),
                **self._settings(
                    num_frames,
                    prompt_embeds=text.prompt_embeds,
                    prompt_attention_mask=text.prompt_attention_mask,
                    negative_prompt_embeds=text.negative_prompt_embeds,
                    negative_prompt_attention_mask=text.negative_prompt_attention_mask,
                    latents=noise,
                    **self._steps(drafted),
                    guidance_scale=self.guidance_scale,
                    image_cond_noise_scale=0.0,
                    output_type="latent",
                    callback_on_step_end=keep,
                ),
            )
        if drafted:
            states = self._with_first_frame(noise, states, num_frames)
        start = _begin(noise, states[0], self.layout("text" if pictures is None else "first", num_frames), pipeline)
        return {
            "states": torch.stack([start, *states], dim=1),
            "prompt_embeds": text.prompt_embeds.to("cpu", dtype),
            "attention_mask": text.prompt_attention_mask.bool().cpu(),
        }

    def _steps(self, drafted: bool) -> dict[str, Any]:
        """What tells the pipeline its sigmas; a draft has a schedule of its own, so none by hand."""
        if not drafted:
            return {"sigmas": self.fine}
        return {"num_inference_steps": len(self.fine), "draft_steps": self.config.draft_steps}

    def _with_first_frame(self, noise: Tensor, states: list[Tensor], num_frames: int) -> list[Tensor]:
        """States after a draft, whose first frame was there from the start: now it comes straight from the noise."""
        first = self.layout("first", num_frames).strength[None, :, None] > 0
        tokens = pack(noise, self.pipeline.patch_size).to(states[0])
        return [
            torch.where(first, sigma * tokens + (1 - sigma) * state, state)
            for sigma, state in zip((*self.grid[1:], 0.0), states, strict=True)
        ]

    def _pipeline(self, task: str) -> Any:
        if task == "text":
            return self.pipeline
        animate = ImageToVideoPipeline(**self.pipeline.components)
        animate.set_progress_bar_config(disable=True)
        return animate

    def _settings(self, num_frames: int, **settings: Any) -> dict[str, Any]:
        return {"num_frames": num_frames, **settings}

    def _schedule(self, num_steps: int) -> tuple[float, ...]:
        """The sigmas that the pipeline takes for that many steps at its default size, without the final 0."""
        filled = self.pipeline.fill_settings({"prompt": "", "num_inference_steps": num_steps})
        shape, _ = self.pipeline.check_inputs(filled)
        tokens = shape.frames * shape.height * shape.width // self.pipeline.patch_size**2
        scheduler = self.pipeline.scheduler
        set_schedule(scheduler, filled, tokens, self.pipeline.convention, torch.device("cpu"))
        return tuple(float(sigma) for sigma in scheduler.sigmas[:-1])

    def _fine_schedule(self) -> tuple[float, ...]:
        """`substeps` steps between any two sigmas of the grid."""
        # The pipeline's own schedule for that number of steps where it passes through the grid, else even steps.
        grid, substeps = self.grid, self.config.substeps
        own = self._schedule(len(grid) * substeps)
        if all(abs(a - b) < 1e-6 for a, b in zip(own[::substeps], grid, strict=True)):
            return own
        if self.config.draft_steps:
            raise RequestError(
                f"trajectories.draft_steps={self.config.draft_steps} needs a teacher whose schedule for "
                f"{len(grid) * substeps} steps passes through the student's {len(grid)} sigmas; use 0 (no draft)."
            )
        ends = (*grid[1:], 0.0)
        return tuple(
            begin + (end - begin) * step / substeps
            for begin, end in zip(grid, ends, strict=True)
            for step in range(substeps)
        )


@torch.no_grad()
def decode_tokens(pipeline: TextToVideoPipeline, tokens: Tensor, num_frames: int) -> list[np.ndarray]:
    """Finished tokens [B, N, C] of clips of a pipeline's default size, uint8 [F, H, W, 3] each."""
    source = torch.Generator().manual_seed(0)
    settings = pipeline.fill_settings({"prompt": [""] * len(tokens), "num_frames": num_frames, "generator": source})
    shape, _ = pipeline.check_inputs(settings)
    latents = unpack(tokens.to(pipeline._execution_device), shape, pipeline.patch_size)
    return list(to_frames(pipeline.coder(settings).decode(latents)).cpu().numpy())


def _begin(noise: Tensor, after: Tensor, layout: Layout, pipeline: Any) -> Tensor:
    """State 0 [B, T, C]: noise; what is given stands there from the start and never moves."""
    tokens = pack(noise, pipeline.patch_size)
    tokens = torch.cat([after[:, : layout.num_extra], tokens], dim=1)
    return torch.where(layout.strength[None, :, None] > 0, after, tokens)
