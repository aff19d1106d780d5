"""What a step of flow matching needs beside cached latents, made on the CPU: a worker can do it ahead of the step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vgen.diffusion.schedules import sample_training_sigmas
from vgen.request.steps import resolution_shift_mu
from vgen.training.data.clips import SpriteClips
from vgen.training.data.plan import RENDERED, Batch, BatchPlan
from vgen.training.objectives.flow.tasks import CACHED_TASKS, draw_task
from vgen.training.randomness import Keys
from vgen.training.recipe import FlowObjectiveConfig
from vgen.types import Strides


@dataclass(frozen=True)
class FlowDraws:
    """Noise, sigmas and clips rendered for the step's task: a function of the batch's indices and the keys.

    Args:
        config: of the recipe.
        plan: says which stage of the recipe a step belongs to.
        clips: are rendered again for tasks whose material no cached latent can lend.
        strides: pixels per latent.
        patch_size: latents per token along rows and columns.
    """

    config: FlowObjectiveConfig
    plan: BatchPlan
    clips: SpriteClips
    strides: Strides
    patch_size: int

    def __call__(self, batch: Batch, keys: Keys) -> Batch:
        """The batch with "noise" [B, N, C] and, where something is rendered, "rendered" uint8 [B, F, H, W, 3]."""
        latents = batch["latents"]
        prepared = {**batch, "noise": keys.normal("noise", token_shape(latents, self.patch_size))}
        task = self.task(latents.shape[2], keys)
        if task not in CACHED_TASKS:
            prepared[RENDERED] = self._rendered(task, batch["indices"].tolist(), latents.shape[2], keys)
        return prepared

    def sigma(self, rows: int, tokens: int, keys: Keys) -> Tensor:
        """[B] of clips of so many tokens, on the CPU."""
        mu = resolution_shift_mu(tokens, **(self.plan.stage(keys.step).shift or self.config.shift).model_dump())

        def draw(rows: int, drawn: torch.Generator) -> Tensor:
            return sample_training_sigmas(rows, tokens, drawn, uniform_share=self.config.uniform_share, mu=mu)

        return keys.rows("sigma", rows, draw)

    def task(self, latent_frames: int, keys: Keys) -> str:
        """That of a micro-batch of clips of so many latent frames."""
        return draw_task(self.plan.stage(keys.step).tasks or self.config.tasks, latent_frames, keys)

    def turn_frames(self, latent_frames: int, keys: Keys) -> int:
        """Latent frames of a clip before it turns to what its text says."""
        if latent_frames == 2:
            return 1
        return int(torch.randint(2, min(latent_frames, 4), (), generator=keys.generator("turn")))

    def _rendered(self, task: str, indices: list[int], latent_frames: int, keys: Keys) -> Tensor:
        num_frames = 1 + (latent_frames - 1) * self.strides.temporal
        if task == "reference":
            places = keys.rows("reference", len(indices), lambda rows, drawn: torch.rand(rows, 2, generator=drawn))
            return self.clips.pictures(indices, places)
        if task == "turn":
            turn = (self.turn_frames(latent_frames, keys) - 1) * self.strides.temporal
            draws = keys.rows("turns", len(indices), lambda rows, drawn: torch.rand(rows, 2, generator=drawn))
            return self.clips.turns(indices, num_frames, turn, draws)
        return self.clips.stack(indices, num_frames)["frames"]


def token_shape(latents: Tensor, patch_size: int) -> tuple[int, int, int]:
    """(B, N, C) of the tokens of latents [B, C, f, h, w]."""
    per_token = patch_size**2
    return latents.shape[0], latents.shape[2:].numel() // per_token, latents.shape[1] * per_token
