"""Flow matching of the video transformer on cached latents: from nothing with its text encoder, or a finished model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import T5EncoderModel

from vgen.diffusion.conditions import KnownLatents
from vgen.diffusion.tokens import pack
from vgen.engine.memory.offload import resident_bytes, weight_bytes
from vgen.models import CausalVideoVAE, VideoDiT
from vgen.pipelines.call.conventions import Convention, convention_named
from vgen.pipelines.text_to_video import TextToVideoPipeline
from vgen.request.steps import resolution_shift_mu
from vgen.training.config.stages import Stage, TaskMix
from vgen.training.control import Control
from vgen.training.data.plan import Batch, BatchPlan
from vgen.training.objectives.base import Coding, Costs, Objective, TaskWork, losses_at_quantiles
from vgen.training.objectives.flow.config import FlowSettings
from vgen.training.objectives.flow.draws import draw_sigmas, mu_of, token_shape
from vgen.training.objectives.flow.given_material import MOST_FRAMES
from vgen.training.objectives.flow.material import Material
from vgen.training.objectives.flow.tasks import (
    CACHED_TASKS,
    FlowInputs,
    draw_task,
    most_given_frames,
    velocity_errors,
)
from vgen.training.precision import computes_bfloat16
from vgen.training.randomness import Keys
from vgen.training.report.log import save_sheet

_BUCKETS = 4
_OWN_CONVENTION = ("text", "first")
"""Tasks of the text-to-video and image-to-video pipelines; all others are sampled with conditions anywhere."""

Export = Callable[[TextToVideoPipeline, Path, torch.dtype], float]
"""Writes what was trained of a pipeline into a folder, in a number format; returns mebibytes."""


class FlowObjective(Objective):
    """Mean squared error of the velocity over unknown tokens, at a sigma of each token's own.

    Args:
        config: of the recipe.
        pipeline: samples with the present weights; its transformer is trained, its VAE is frozen.
        material: what is given, and what is validated on.
        plan: says which stage of the recipe a step belongs to.
        export: writes the trained model.
        text_encoder: trained along; None: batches hold embeddings.
    """

    plain_task = "text"

    def __init__(
        self,
        config: FlowSettings,
        pipeline: TextToVideoPipeline,
        material: Material,
        plan: BatchPlan,
        export: Export,
        text_encoder: T5EncoderModel | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.plan = plan
        self.material = material
        self.export = export
        self.transformer: VideoDiT = pipeline.transformer
        self.text_encoder = text_encoder
        self._frozen = {"pipeline": pipeline}  # a dictionary keeps it out of the trained modules
        self._held_out: list[Batch] = []

    @property
    def pipeline(self) -> TextToVideoPipeline:
        """Samples with the present weights."""
        return self._frozen["pipeline"]

    @property
    def vae(self) -> CausalVideoVAE:
        """The frozen autoencoder."""
        return self.pipeline.vae

    def prepare(self, batch: Batch, keys: Keys) -> Batch:
        """The batch with "noise" [B, N, C] and what the step's task needs rendered."""
        latents = batch["latents"]
        prepared = {**batch, "noise": keys.normal("noise", token_shape(latents, self.pipeline.patch_size))}
        return self.material.prepare(self._task(latents, keys), prepared, keys)

    def loss(self, batch: Batch, keys: Keys) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of one micro-batch of latents and texts, prepared or not."""
        batch = batch if "noise" in batch else self.prepare(batch, keys)
        task = self._task(batch["latents"], keys)
        latents, known = self.material.given(task, batch, keys, self._encode)
        sigma = self.sigma(latents, keys)
        errors = self.errors(
            {**batch, "latents": latents}, known, sigma.to(latents, non_blocking=True), batch["noise"].to(latents), task
        )
        loss = errors.mean()
        return loss, {f"loss/{task}": loss.detach(), **_by_sigma(errors.detach(), sigma)}

    def sigma(self, latents: Tensor, keys: Keys) -> Tensor:
        """[B] of the clips of a micro-batch, on the CPU; at the stage's own shift, or the scheduler's."""
        rows, tokens, _ = token_shape(latents, self.pipeline.patch_size)
        shift = self.plan.stage(keys.step).shift
        if shift is None:
            mu = mu_of(self.pipeline.scheduler, tokens)
        else:
            mu = resolution_shift_mu(tokens, **shift.model_dump())
        return draw_sigmas(rows, tokens, mu, self.config.uniform_share, keys)

    def errors(
        self,
        batch: Batch,
        known: list[KnownLatents],
        sigma: Tensor,
        noise: Tensor,
        task: str = "text",
    ) -> Tensor:
        """Mean squared error of each sample: [B]. A mask of the footage weighs its tokens.

        Args:
            batch: latents [B, C, f, h, w] and texts.
            known: the given material.
            sigma: [B].
            noise: [B, N, C].
            task: which, see `convention`.
        """
        inputs = self._inputs(batch["latents"].float(), known, sigma, noise, self.material.frame_rate(batch), task)
        if "weight" in batch:
            masked = inputs.weight * pack(batch["weight"].float(), self.pipeline.patch_size).mean(dim=-1)
            # Where all that the mask counts is given already, the rest of the clip is better than nothing.
            inputs.weight = torch.where(masked.sum(dim=1, keepdim=True) > 0, masked, inputs.weight)
        if self.text_encoder is None:
            return velocity_errors(self.transformer, inputs, batch["prompt_embeds"], batch["prompt_attention_mask"])
        mask = batch["attention_mask"].bool()
        embeds = self.text_encoder(batch["input_ids"], attention_mask=mask)[0]
        return velocity_errors(self.transformer, inputs, embeds, mask)

    def rehearse(self, batch: Batch, given: int | None = None) -> Tensor:
        """See Objective."""
        latents = batch["latents"].float()
        shape = token_shape(latents, self.pipeline.patch_size)
        inputs = self._inputs(latents, [], latents.new_zeros(shape[0]), latents.new_zeros(shape), 1.0, "text")
        inputs.grow(given)
        if self.text_encoder is None:
            embeds, mask = batch["prompt_embeds"], batch["prompt_attention_mask"]
        else:  # given a mask, it would look whether anything is hidden
            embeds, mask = self.text_encoder(batch["input_ids"])[0], batch["attention_mask"].bool()
        return velocity_errors(self.transformer, inputs, embeds, mask).mean()

    def convention(self, task: str) -> Convention:
        """The convention that a model samples a task with: its own, or that of conditions anywhere in the clip."""
        own = self.pipeline.model_convention
        return own if task in _OWN_CONVENTION else convention_named(own.conditions_name)

    def tokens(self, batch: Batch) -> int:
        """Those of the clips; what is given next to them does not count."""
        rows, count, _ = token_shape(batch["latents"], self.pipeline.patch_size)
        return rows * count

    def _task(self, latents: Tensor, keys: Keys) -> str:
        return draw_task(self._mix(self.plan.stage(keys.step)), latents.shape[2], keys, self.material.tasks)

    def _mix(self, stage: Stage) -> TaskMix:
        return stage.tasks or self.config.tasks

    def _inputs(
        self, latents: Tensor, known: list[KnownLatents], sigma: Tensor, noise: Tensor, frame_rate: float, task: str
    ) -> FlowInputs:
        convention, pipeline = self.convention(task), self.pipeline
        return FlowInputs(
            latents,
            known,
            sigma,
            noise,
            pipeline.vae.strides,
            frame_rate,
            pipeline.patch_size,
            causal=convention.causal_coordinates,
            prefix_latent_frames=convention.prefix_latent_frames,
        )

    def _encode(self, video: Tensor) -> Tensor:
        """Pixels [B, 3, F, H, W] in [-1, 1] to normalised latents, without gradients, as the latent cache does it."""
        vae = self.vae.to(video.device)
        bfloat16 = self.config.encodes_in == "bfloat16" and computes_bfloat16(video.device)
        with torch.no_grad(), torch.autocast(video.device.type, torch.bfloat16, enabled=bfloat16):
            latents = vae.encode(video).latent_dist.mode()
        return vae.normalize(latents.float())

    def validate(self, step: int, folder: Path, control: Control) -> dict[str, float]:
        """Loss at fixed quantiles of sigma on fixed noise and clips, and a sheet of generated clips."""
        measured = self.fixed_losses(control)
        if self.config.sample_clips:
            calls = self.material.samples()
            prompts = [prompt for call in calls for prompt in np.atleast_1d(call["prompt"]).tolist()]
            clips = [clip for call in calls for clip in self.sample(call, control)]
            save_sheet(folder / f"step-{step:08d}.png", clips, prompts)
        return measured

    @torch.no_grad()
    def fixed_losses(self, control: Control | None = None) -> dict[str, float]:
        """{"loss_at_0.1", ..., "loss"}: mean over the held-out samples, each with noise of its own."""
        device = next(self.transformer.parameters()).device
        self._held_out = self._held_out or self.material.held_out(self.pipeline.patch_size)
        count = sum(len(batch["latents"]) for batch in self._held_out)

        def loss(quantile: float) -> float:
            total = 0.0
            for batch in self._held_out:
                if control is not None:
                    control.poll()
                part = {name: value.to(device) for name, value in batch.items()}
                sigma = torch.full((len(part["latents"]),), quantile, device=device)
                total += float(self.errors(part, [], sigma, part["noise"]).sum())
            return total / count

        return losses_at_quantiles(loss)

    def sample(self, call: dict[str, Any], control: Control | None = None) -> list[np.ndarray]:
        """Clips of the present weights, uint8 [F, H, W, 3] each.

        Args:
            call: settings of the pipeline, see `Material.samples`.
            control: asked at every step whether to stop.
        """

        def poll(pipeline: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if control is not None:
                control.poll()
            return {}

        self.vae.to(self.transformer.device)
        self.pipeline.set_progress_bar_config(disable=True)
        with torch.autocast(self.transformer.device.type, enabled=False):
            made = self.pipeline(**call, output_type="np", callback_on_step_end=poll).frames
        return [(clip * 255).round().astype("uint8") for clip in made]

    def finish(self, folder: Path, dtype: torch.dtype, control: Control) -> dict[str, float]:
        """Save what was trained: a whole pipeline folder, or a LoRA as diffusers does."""
        self.eval()
        return {"mebibytes": self.export(self.pipeline, folder, dtype)}

    def exports(self) -> dict[str, nn.Module]:
        """See Objective."""
        if self.text_encoder is None:
            return {}
        return {"vae": self.vae, "transformer": self.transformer, "text_encoder": self.text_encoder}

    def task_shares(self, stage: Stage, num_frames: int) -> dict[str, float]:
        """See Objective."""
        if num_frames == 1:
            return {self.plain_task: 1.0}
        shares = {task: self._mix(stage).share(task) for task in self.material.tasks}
        return {task: share / sum(shares.values()) for task, share in shares.items() if share > 0}

    @contextmanager
    def only_task(self, task: str) -> Iterator[None]:
        """See Objective."""
        before, none = self.plan, {"text": 0.0, "first": 0.0, "prefix": 0.0, "other": 0.0}
        stages = [stage.model_copy(update={"tasks": TaskMix(**{**none, task: 1.0})}) for stage in before.stages]
        self.plan = BatchPlan(stages, before.seed, before.rank, before.world)
        try:
            yield
        finally:
            self.plan = before

    def _drawn(self) -> set[str]:
        """Tasks of all stages."""
        return {task for stage in self.plan.stages for task in self.task_shares(stage, 2)}

    def most_given(self, batch: Batch) -> int | None:
        """See Objective."""
        return most_given_frames(self._drawn(), batch["latents"].shape[2], self.vae.strides)

    def task_work(self, task: str, num_frames: int) -> TaskWork:
        """See Objective."""
        latent_frames = 1 + (num_frames - 1) // self.vae.strides.temporal
        growth = 1 + (most_given_frames({task}, latent_frames, self.vae.strides) or 0) / latent_frames
        if task in CACHED_TASKS:
            return TaskWork(growth)
        lengths = {"reference": [1], "frames": [1] * min(MOST_FRAMES, num_frames)}.get(task, [num_frames])
        encoded = [Coding(self.vae, "encode", length, self.material.canvas, 1) for length in lengths]
        return TaskWork(growth, encoded, self.material.rendering(num_frames))

    def costs(self) -> Costs:
        """See Objective."""
        config, pipeline = self.config, self.pipeline
        model, blocks = self.transformer, self.transformer.transformer_blocks
        on_host = weight_bytes(model) - resident_bytes(model, blocks, frozen_only=True) if config.offloads else 0
        return Costs(
            frozen=[part for part in pipeline.components.values() if isinstance(part, nn.Module)],
            frozen_weight_bytes=config.frozen_weight_bytes,
            host_bytes=on_host,
            codings=self.material.codings(self.vae, self.plan.stages, bool(self._drawn() - set(CACHED_TASKS))),
            validation=self.material.validation_forwards(pipeline.config.defaults),
            forwards_per_row=2.0 if config.freezes else 3.0,  # frozen weights have no gradients of their own
            settings=f"explicit attention: {config.explicit_attention}",
        )


def _by_sigma(errors: Tensor, sigma: Tensor) -> dict[str, Tensor]:
    """Mean loss of the samples in each quarter of [0, 1]; sigma is on the CPU, so that no GPU has to be waited for."""
    present, bucket = (sigma * _BUCKETS).long().clamp(max=_BUCKETS - 1).unique(return_inverse=True)
    share = torch.nn.functional.one_hot(bucket).T.to(errors.dtype)
    means = ((share / share.sum(1, keepdim=True)).to(errors.device, non_blocking=True) * errors).sum(1)
    return {f"loss/sigma_{value / _BUCKETS}": mean for value, mean in zip(present.tolist(), means, strict=True)}
