"""Fine-tuning of a finished model on footage: a LoRA, or all of its transformer."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vgen.diffusion.conditions import KnownLatents
from vgen.diffusion.schedules import sample_training_sigmas
from vgen.diffusion.tokens import pack
from vgen.engine.memory.offload import offload_blocks
from vgen.errors import RequestError
from vgen.models import VideoDiT
from vgen.pipelines.call.conventions import Convention, convention_named
from vgen.pipelines.text_to_video import TextToVideoPipeline
from vgen.training.control import Control
from vgen.training.data.clips import to_pixels
from vgen.training.data.footage.source import FootageLatents
from vgen.training.data.plan import Batch, BatchPlan
from vgen.training.objectives.base import TrainedOnly, losses_at_quantiles
from vgen.training.objectives.explicit_attention import use_explicit_attention
from vgen.training.objectives.flow.density import scheduler_mu
from vgen.training.objectives.flow.given_material import encoded_material, reference_material
from vgen.training.objectives.flow.tasks import (
    CACHED_TASKS,
    FOOTAGE_TASKS,
    FlowInputs,
    draw_task,
    known_latents,
    most_tokens_beside,
    tasks_of,
)
from vgen.training.objectives.lora import ADAPTER, add_lora, quantize_blocks, without_adapters
from vgen.training.randomness import Keys, generator
from vgen.training.recipe import FineTuneObjectiveConfig
from vgen.training.report.log import save_sheet

_OWN_CONVENTION = ("text", "first")
"""Tasks of the text-to-video and image-to-video pipelines; all others are sampled with conditions anywhere."""


class FineTuneObjective(TrainedOnly):
    """Mean squared error of the velocity over unknown tokens, as in training from scratch.

    Args:
        config: of the recipe.
        source: samples; one bucket a batch.
        pipeline: the model; its transformer is what is trained, the rest is frozen.
        plan: says which stage of the recipe a step belongs to.
        seed: of the recipe; initialises the LoRA.
        device: where it will be trained; needed for `offload` alone.
    """

    def __init__(
        self,
        config: FineTuneObjectiveConfig,
        source: FootageLatents,
        pipeline: TextToVideoPipeline,
        plan: BatchPlan,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self.config = config
        self.plan = plan
        self.transformer: VideoDiT = pipeline.transformer
        if config.explicit_attention:
            use_explicit_attention(self.transformer)
        if config.base_weights != "keep":
            quantize_blocks(self.transformer, config.base_weights)
        if config.mode == "lora":
            add_lora(self.transformer, config.lora, seed)
        else:
            self.transformer.requires_grad_(True)
        if config.gradient_checkpointing:
            self.transformer.enable_gradient_checkpointing()
        if config.offload:
            offload_blocks(self.transformer, self.transformer.transformer_blocks, device, frozen_only=True)
        self._frozen: dict[str, Any] = {"pipeline": pipeline, "source": source}  # not among the trained modules

    @property
    def pipeline(self) -> TextToVideoPipeline:
        """Samples with the present weights."""
        return self._frozen["pipeline"]

    @property
    def source(self) -> FootageLatents:
        """The samples."""
        return self._frozen["source"]

    def loss(self, batch: Batch, keys: Keys) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of one micro-batch of `FootageLatents.load`."""
        latents = batch["latents"].float()
        task = draw_task(self.plan.stage(keys.step).tasks or self.config.tasks, latents.shape[2], keys, FOOTAGE_TASKS)
        known = self._known(task, batch, keys)
        shape = self._token_shape(latents)
        mu = self.shift(shape[1])

        def draw(rows: int, drawn: torch.Generator) -> Tensor:
            return sample_training_sigmas(rows, shape[1], drawn, uniform_share=self.config.uniform_share, mu=mu)

        sigma = keys.rows("sigma", shape[0], draw)
        noise = keys.normal("noise", shape)
        errors = self.errors(batch, known, sigma.to(latents), noise.to(latents), task=task)
        loss = errors.mean()
        return loss, {f"loss/{task}": loss.detach()}

    def shift(self, num_tokens: int) -> float:
        """mu of the model's own scheduler; LTX-Video's line where it does not shift by token count."""
        return scheduler_mu(self.pipeline.scheduler, num_tokens)

    def rehearse(self, batch: Batch) -> Tensor:
        """The loss where nothing is given, without looking at values."""
        latents = batch["latents"].float()
        shape = self._token_shape(latents)
        return self.errors(batch, [], latents.new_zeros(shape[0]), latents.new_zeros(shape), 1.0).mean()

    def rehearse_most(self, batch: Batch) -> Tensor:
        """The same where as much is given as any task of the recipe gives."""
        latents = batch["latents"].float()
        shape = self._token_shape(latents)
        tasks = tasks_of((stage.tasks or self.config.tasks for stage in self.plan.stages), FOOTAGE_TASKS)
        beside = most_tokens_beside(tasks, latents.shape[2], self.pipeline.vae.strides)
        sigma, noise = latents.new_zeros(shape[0]), latents.new_zeros(shape)
        return self.errors(batch, [], sigma, noise, 1.0, beside=beside).mean()

    def tokens(self, batch: Batch) -> int:
        """Those of the clips; what is given beside them does not count."""
        rows, count, _ = self._token_shape(batch["latents"])
        return rows * count

    def convention(self, task: str) -> Convention:
        """The convention that a model samples a task with: its own, or that of conditions anywhere in the clip."""
        own = self.pipeline.model_convention
        return own if task in _OWN_CONVENTION else convention_named(own.conditions_name)

    def errors(
        self,
        batch: Batch,
        known: list[KnownLatents],
        sigma: Tensor,
        noise: Tensor,
        frame_rate: float | None = None,
        task: str = "text",
        beside: int | None = None,
    ) -> Tensor:
        """Mean squared error of each sample: [B]. A mask of the footage weighs its tokens.

        Args:
            batch: of `FootageLatents.load`.
            known: the given material.
            sigma: [B].
            noise: [B, N, C].
            frame_rate: None: that of the batch's samples.
            task: which, see `convention`.
            beside: for a rehearsal, see `FlowInputs.grow`.
        """
        convention, latents = self.convention(task), batch["latents"].float()
        inputs = FlowInputs(
            latents,
            known,
            sigma,
            noise,
            self.pipeline.vae.strides,
            frame_rate if frame_rate is not None else self.source.frame_rate(batch["indices"].tolist()),
            self.pipeline.patch_size,
            causal=convention.causal_coordinates,
            prefix_latent_frames=convention.prefix_latent_frames,
        )
        inputs.grow(beside)
        if "weight" in batch:
            masked = inputs.weight * pack(batch["weight"].float(), self.pipeline.patch_size).mean(dim=-1)
            # Where all that the mask counts is given already, the rest of the clip is better than nothing.
            inputs.weight = torch.where(masked.sum(dim=1, keepdim=True) > 0, masked, inputs.weight)
        velocity = self.transformer(
            inputs.hidden_states.to(self.transformer.dtype),
            batch["prompt_embeds"].to(self.transformer.dtype),
            inputs.timestep,
            encoder_attention_mask=batch["prompt_attention_mask"],
            video_coords=inputs.coordinates[:1],
            return_dict=False,
        )[0]
        return inputs.errors(velocity)

    def _known(self, task: str, batch: Batch, keys: Keys) -> list[KnownLatents]:
        latents, strides = batch["latents"].float(), self.pipeline.vae.strides
        if task in CACHED_TASKS:
            return known_latents(task, latents, batch.get("last"), strides, keys)
        video = to_pixels(self.source.pixels(batch["indices"].tolist()).to(latents.device))
        if task == "reference":
            frame = int(torch.randint(video.shape[2], (), generator=keys.generator("reference")))
            return reference_material(video[:, :, frame : frame + 1], self._encode)
        return encoded_material(task, video, self._encode, strides, keys)

    def _encode(self, video: Tensor) -> Tensor:
        """Pixels [B, 3, F, H, W] in [-1, 1] to normalised latents, in float32."""
        vae = self.pipeline.vae.to(video.device)
        with torch.no_grad(), torch.autocast(video.device.type, enabled=False):
            return vae.normalize(vae.encode(video).latent_dist.mode())

    def _token_shape(self, latents: Tensor) -> tuple[int, int, int]:
        """(B, N, C) of the tokens of latents [B, C, f, h, w]."""
        per_token = self.pipeline.patch_size**2
        return latents.shape[0], latents.shape[2:].numel() // per_token, latents.shape[1] * per_token

    def validate(self, step: int, folder: Path, control: Control) -> dict[str, float]:
        """Loss at fixed quantiles of sigma on fixed noise and samples, and a sheet of generated clips."""
        measured = self.fixed_losses(control)
        if self.config.sample_clips:
            prompts = self.source.prompts()[: self.config.sample_clips]
            save_sheet(folder / f"step-{step:08d}.png", [self.sample(prompt, 0) for prompt in prompts], prompts)
        return measured

    @torch.no_grad()
    def fixed_losses(self, control: Control | None = None) -> dict[str, float]:
        """{"loss_at_0.1", ..., "loss"}: mean over samples spread over the data set, each with noise of its own."""
        device = next(self.transformer.parameters()).device
        count = min(self.config.validation_samples, len(self.source.samples))
        chosen = [round(place * (len(self.source.samples) - 1) / max(1, count - 1)) for place in range(count)]
        fixed: list[tuple[Batch, Tensor]] = []
        for place in chosen:
            text = self.source.captions[self.source.samples[place].clip][0]
            batch = {**self.source.stack([place]), **self.source.encoding([text])}
            noise = torch.randn(self._token_shape(batch["latents"]), generator=generator(0, "validation noise", place))
            fixed.append((batch, noise))

        def loss(quantile: float) -> float:
            total = 0.0
            for batch, noise in fixed:
                if control is not None:
                    control.poll()
                part = {name: value.to(device) for name, value in batch.items()}
                sigma = torch.full((1,), quantile, device=device)
                total += float(self.errors(part, [], sigma, noise.to(device))) / count
            return total

        return losses_at_quantiles(loss)

    def sample(self, prompt: str, seed: int) -> Any:
        """A clip from a caption, uint8 [F, H, W, 3], in the size of the caption's first sample."""
        place = next(p for p, s in enumerate(self.source.samples) if prompt in self.source.captions[s.clip])
        bucket = self.source.samples[place].bucket
        self.pipeline.vae.to(self.transformer.device)
        with torch.autocast(self.transformer.device.type, enabled=False):
            made = self.pipeline(
                prompt=prompt,
                num_frames=bucket.num_frames,
                height=bucket.height,
                width=bucket.width,
                frame_rate=bucket.frame_rate,
                generator=torch.Generator().manual_seed(seed),
                output_type="np",
            ).frames[0]
        return (made * 255).round().astype("uint8")

    @contextmanager
    def as_base(self) -> Iterator[None]:
        """Inside, the model is what it was before the LoRA."""
        if self.config.mode == "full":
            raise RequestError("mode=full: the base model is not kept; compare with the model it was tuned from.")
        with without_adapters(self.transformer):
            yield

    def finish(self, folder: Path, dtype: torch.dtype, control: Control) -> dict[str, float]:
        """Save the LoRA as diffusers does, or the whole pipeline."""
        if self.config.mode == "lora":
            file = self.pipeline.save_lora(folder, ADAPTER)
            return {"mebibytes": file.stat().st_size / 2**20}
        kept = self.pipeline.transformer
        self.pipeline.register_modules(transformer=copy.deepcopy(kept).to(dtype))
        try:
            self.pipeline.save_pretrained(folder)
        finally:
            self.pipeline.register_modules(transformer=kept)
        return {"mebibytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20}
