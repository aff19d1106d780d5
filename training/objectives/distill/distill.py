"""Few steps: a student learns the mean velocity of its teacher between two of the sigmas it will be sampled at.

Along a trajectory x_0 (noise), x_1 ... x_N (clean) of the guided teacher the student learns, at (x_i, sigma_i),

    (x_i - x_{i+1}) / (sigma_i - sigma_{i+1}),

so that plain Euler steps over the same sigmas, without guidance, go where the teacher goes. In a share of the batches
x_i is where the student's own steps from x_0 have led it, and what it learns leads from there back to x_{i+1} (as
DAgger, Ross et al. 2011, has a learner's own states labelled). Errors may be divided by a power of themselves
(MeanFlow's adaptive weight, Geng et al. 2025): early segments err by ten times as much as late ones, which sharpen.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vgen.diffusion.conditions import token_sigmas
from vgen.diffusion.guidance import ClassifierFreeGuidance
from vgen.pipelines import TextToVideoPipeline
from vgen.request.settings import Settings
from vgen.training.config.data import LoraConfig
from vgen.training.control import Control
from vgen.training.data.plan import Batch
from vgen.training.data.prompts import SpritePrompts
from vgen.training.judge.judge import score
from vgen.training.objectives.base import Costs, Objective
from vgen.training.objectives.distill.config import DistillObjectiveConfig
from vgen.training.objectives.distill.teacher import Teacher, decode_tokens
from vgen.training.objectives.distill.trajectories import TrajectoryCache
from vgen.training.objectives.export import save_pipeline
from vgen.training.objectives.lora import add_lora
from vgen.training.randomness import Keys
from vgen.training.report.log import save_sheet

ADAPTER = "few_steps"
LEARNED = ("num_inference_steps", "guidance_scale", "sigmas", "distilled")
"""What a student's weights were made for: stored with them, and enforced (see vgen.request.steps)."""

_OF_THE_TEACHER = {"allowed_inference_steps", *(name for name, knob in Settings.knobs().items() if knob.learned)}
_CHUNK = 16
_SMALL = 1e-3


class DistillObjective(Objective):
    """Mean squared error of the segment velocity over tokens that are not given.

    Args:
        config: of the recipe.
        teacher: of the trajectories; its transformer becomes the student once they are integrated.
        held_out: trajectories for validation.
        seed: of the recipe; initialises adapters.
    """

    def __init__(self, config: DistillObjectiveConfig, teacher: Teacher, held_out: TrajectoryCache, seed: int) -> None:
        super().__init__()
        self.config = config
        self.held_out = held_out
        self._frozen = {"pipeline": teacher.pipeline}  # a dictionary keeps it out of the trained modules
        self.grid = teacher.grid
        self.transformer = teacher.pipeline.transformer
        self.transformer.requires_grad_(config.train == "full")
        if config.train == "lora":
            add_lora(self.transformer, LoraConfig(rank=config.rank, alpha=config.alpha), seed, ADAPTER)
        self._wanted: list[np.ndarray] = []
        self._ends = torch.tensor([*self.grid, 0.0])

    @property
    def pipeline(self) -> TextToVideoPipeline:
        """The pipeline that the student is part of."""
        return self._frozen["pipeline"]

    def loss(self, batch: Batch, keys: Keys) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of one micro-batch of trajectories; every segment gets the same share of it."""
        count, steps = batch["states"].shape[0], len(self.grid)
        offset = torch.randint(steps, (), generator=keys.generator("segment"))
        segment = (torch.arange(count) + offset) % steps
        own = float(torch.rand((), generator=keys.generator("own states"))) < self.config.own_states
        errors = self.segment_errors(batch, segment, self.reached(batch, segment) if own else None)
        logs = {f"loss/segment_{i}": errors[segment == i].mean() for i in sorted(set(segment.tolist()))}
        loss = (errors / (errors.detach() + _SMALL) ** self.config.error_power).mean()
        return loss, {name: value.detach() for name, value in logs.items()}

    def segment_errors(self, batch: Batch, segment: Tensor, begin: Tensor | None = None) -> Tensor:
        """Squared error of each sample's velocity over one of its segments.

        Args:
            batch: of `TrajectoryCache.rows`.
            segment: [B], which one.
            begin: [B, T, C], where each begins; None: where the teacher was.
        Returns:
            [B]; mean over channels and over tokens that are not given.
        """
        rows = torch.arange(len(segment))
        end = batch["states"][rows, segment + 1]
        begin = batch["states"][rows, segment] if begin is None else begin
        sigma, after = (self._ends[index].to(begin) for index in (segment, segment + 1))
        target = (begin - end) / (sigma - after)[:, None, None]
        error = (self.velocity(begin, sigma, batch).float() - target).square().mean(dim=-1)
        weight = (batch["strength"] < 1).to(error)
        return (error * weight).sum(dim=1) / weight.sum(dim=1)

    @torch.no_grad()
    def reached(self, batch: Batch, segment: Tensor) -> Tensor:
        """Where the student's own steps from the noise have led it when a segment begins.

        Args:
            batch: of `TrajectoryCache.rows`.
            segment: [B], which one.
        Returns:
            [B, T, C]; what is given stays where it is.
        """
        tokens = batch["states"][:, 0].clone()
        for index in range(int(segment.max())):
            going = torch.nonzero(segment > index)[:, 0]
            rows = {name: value[going] for name, value in batch.items()}
            sigma, after = (self._ends[end].to(tokens) for end in (index, index + 1))
            step = self.velocity(tokens[going], sigma.expand(len(going)), rows).float() * (after - sigma)
            tokens[going] += torch.where(rows["strength"][..., None] < 1, step, 0.0)
        return tokens

    def velocity(self, tokens: Tensor, sigma: Tensor, batch: Batch) -> Tensor:
        """The student's prediction [B, T, C], called as a pipeline calls it without guidance.

        Args:
            tokens: [B, T, C].
            sigma: [B].
            batch: the rest of the transformer's inputs.
        """
        strength = batch["strength"]
        timestep = token_sigmas(sigma, strength) if bool(strength.any()) else sigma
        return self._transformed(tokens, timestep, batch)

    def rehearse(self, batch: Batch, given: int | None = None) -> Tensor:
        """See Objective; where a first frame is given, each token has a timestep."""
        rows, _, tokens, _ = batch["states"].shape
        timestep = batch["states"].new_zeros(rows) if given is None else batch["states"].new_zeros(rows, tokens)
        begin, end = batch["states"][:, 0], batch["states"][:, 1]
        return (self._transformed(begin, timestep, batch).float() - (begin - end)).square().mean()

    def most_given(self, batch: Batch) -> int | None:
        """See Objective."""
        return 0 if self.config.trajectories.first else None

    def costs(self) -> Costs:
        """See Objective."""
        frozen = [part for part in self.pipeline.components.values() if isinstance(part, nn.Module)]
        return Costs(frozen, settings=f"explicit attention: {self.config.explicit_attention}")

    def _transformed(self, tokens: Tensor, timestep: Tensor, batch: Batch) -> Tensor:
        return self.transformer(
            hidden_states=tokens,
            encoder_hidden_states=batch["prompt_embeds"],
            timestep=1000 * timestep,
            encoder_attention_mask=batch["attention_mask"],
            video_coords=batch["coordinates"][:1],
            return_dict=False,
        )[0]

    def validate(self, step: int, folder: Path, control: Control) -> dict[str, float]:
        """Loss of each segment on held-out trajectories, and the student's own samples next to the teacher's.

        `distance` is the root mean square difference of the student's finished latents to the teacher's from the same
        noise and prompt; with SpriteWorld's prompts `joint` is how often a judge finds what was asked for, and
        `teacher_joint` the same of the teacher.
        """
        ((task, num_frames), count) = next(iter(self.held_out.groups.items()))
        device = next(self.transformer.parameters()).device
        losses, squared = torch.zeros(len(self.grid)), 0.0
        made: list[np.ndarray] = []
        wanted = self._wanted  # the teacher's clips never change
        for begin in range(0, count, _CHUNK):
            control.poll()
            indices = list(range(begin, min(begin + _CHUNK, count)))
            batch = {name: value.to(device) for name, value in self.held_out.rows(task, num_frames, indices).items()}
            for segment in range(len(self.grid)):
                errors = self.segment_errors(batch, torch.full((len(indices),), segment))
                losses[segment] += float(errors.sum()) / count
            ends = self.sample(batch, num_frames, control)
            squared += float((ends - batch["states"][:, -1]).square().mean(dim=(1, 2)).sum()) / count
            made.extend(decode_tokens(self.pipeline, ends, num_frames))
            if len(wanted) < len(made):
                wanted.extend(decode_tokens(self.pipeline, batch["states"][:, -1], num_frames))
        measured = {f"loss_segment_{i}": float(value) for i, value in enumerate(losses)}
        measured |= {"loss": float(losses.mean()), "distance": squared**0.5}
        self._write_sheet(folder / f"step-{step:08d}.png", made, wanted, num_frames)
        prompts = self.held_out.prompts
        if isinstance(prompts, SpritePrompts) and num_frames > 1:
            keys = [prompts.key(index, num_frames) for index in range(count)]
            for name, clips in (("joint", made), ("teacher_joint", wanted)):
                judged = [score(clip, key).joint for clip, key in zip(clips, keys, strict=True)]
                measured[name] = float(np.mean(judged))
        return measured

    @torch.no_grad()
    def sample(self, batch: Batch, num_frames: int, control: Control) -> Tensor:
        """The student's finished tokens [B, N, C] from the noise of `batch`, through the pipeline's own loop."""
        ends: list[Tensor] = []

        def keep(pipeline: Any, index: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Any]:
            control.poll()
            ends.append(tensors["latents"])
            return {}

        self.pipeline.set_progress_bar_config(disable=True)
        self.pipeline(
            prompt_embeds=batch["prompt_embeds"],
            prompt_attention_mask=batch["attention_mask"],
            latents=batch["states"][:, 0],
            num_frames=num_frames,
            sigmas=self.grid,
            guidance=ClassifierFreeGuidance(),
            output_type="latent",
            callback_on_step_end=keep,
        )
        return ends[-1]

    def _write_sheet(self, path: Path, made: list[np.ndarray], wanted: list[np.ndarray], num_frames: int) -> None:
        count = min(self.config.sample_clips, len(made))
        if not count:
            return
        shown = [clip for index in range(count) for clip in (wanted[index], made[index])]
        texts = [self.held_out.prompts.text(index, num_frames) for index in range(count)]
        labels = [f"{text} ({who})" for text in texts for who in ("teacher", f"{len(self.grid)} steps")]
        save_sheet(path, shown, labels)

    def defaults(self) -> dict[str, Any]:
        """The teacher's defaults, with the one schedule and guidance that the student knows."""
        kept = {name: value for name, value in self.pipeline.config.defaults.items() if name not in _OF_THE_TEACHER}
        return {
            **kept,
            "num_inference_steps": len(self.grid),
            "guidance_scale": 1.0,
            "sigmas": list(self.grid),
            "distilled": True,
        }

    def finish(self, folder: Path, dtype: torch.dtype, control: Control) -> dict[str, float]:
        """Save a whole pipeline folder that knows its sigmas; with adapters, also these as a LoRA file."""
        self.eval()
        transformer = self.transformer
        if self.config.train == "lora":
            learned = {name: self.defaults()[name] for name in LEARNED}
            self.pipeline.save_lora(folder / "lora", ADAPTER, defaults=learned)
            transformer = copy.deepcopy(transformer)
            transformer.fuse_lora(adapter_names=[ADAPTER])
            transformer.unload_lora()
        parts = {**self.pipeline.components, "transformer": transformer, "defaults": self.defaults()}
        student = TextToVideoPipeline(**parts)
        return {"mebibytes": save_pipeline(student, folder, dtype), "num_inference_steps": len(self.grid)}
