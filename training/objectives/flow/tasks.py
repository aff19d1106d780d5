"""What is given to the transformer in training: one task a micro-batch, built with the pipelines' own functions."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from vgen.diffusion.conditions import ConditionSet, KnownLatents, arrange, loss_weight, token_sigmas
from vgen.diffusion.flow import velocity_target
from vgen.diffusion.tokens import pack
from vgen.models import VideoDiT
from vgen.training.config.stages import TaskMix
from vgen.training.objectives.flow.given_material import ENCODED_TASKS, MOST_FRAMES
from vgen.training.randomness import Keys
from vgen.types import LatentShape, Strides

CACHED_TASKS = ("text", "first", "prefix", "last", "both_ends")
"""Tasks whose material lies in the latent cache."""

TASKS = (*CACHED_TASKS, *ENCODED_TASKS, "reference", "turn")
"""All; "reference" is a picture of the same things elsewhere, next to a prefix or nothing; "turn" a prefix in which
something else happens than the text says, as in a story when its prompt changes."""

FOOTAGE_TASKS = tuple(task for task in TASKS if task != "turn")
"""Those that footage lends material for."""


def draw_task(mix: TaskMix, latent_frames: int, keys: Keys, tasks: Sequence[str] = TASKS) -> str:
    """The task of a micro-batch, one of `tasks`: images know nothing but text."""
    if latent_frames == 1:
        return "text"
    shares = torch.tensor([mix.share(task) for task in tasks], dtype=torch.float64)
    return tasks[int(torch.multinomial(shares, 1, generator=keys.generator("task")))]


def known_latents(task: str, latents: Tensor, last: Tensor | None, strides: Strides, keys: Keys) -> list[KnownLatents]:
    """The given material of a task.

    A prefix is cut out of the clip's latents, which a causal encoder makes equal to encoding the prefix alone; a last
    frame comes from its own encoding, since its latent in the clip has seen what is hidden.

    Args:
        task: one of `CACHED_TASKS`.
        latents: [B, C, f, h, w], of the whole clip.
        last: [B, C, 1, h, w], the last frame encoded as an image; needed for "last" and "both_ends".
        strides: pixels per latent.
        keys: draws the length of a prefix.
    """
    if task == "text":
        return []
    frames = latents.shape[2]
    if task in ("first", "prefix"):
        count = 1
        if task == "prefix" and frames > 2:
            # The shorter of two: what little is given is the hardest to go on from.
            count = int(torch.randint(2, frames, (2,), generator=keys.generator("prefix")).min())
        return [KnownLatents(latents[:, :, :count])]
    assert last is not None
    end = [KnownLatents(last, frame_index=(frames - 1) * strides.temporal)]
    return end if task == "last" else [KnownLatents(latents[:, :, :1]), *end]


def most_given_frames(tasks: Collection[str], latent_frames: int, strides: Strides) -> int | None:
    """Latent frames that the largest of `tasks` lays next to a clip's own; None where nothing is ever given.

    Args:
        tasks: that are drawn.
        latent_frames: of the clip.
        strides: pixels per latent.
    """
    if latent_frames == 1 or not set(tasks) - {"text"}:
        return None
    frames = 1 if {"reference", "last", "both_ends"} & set(tasks) else 0
    if {"suffix", "frames"} & set(tasks):
        frames = max(frames, latent_frames - 1)
    if "frames" in tasks:
        frames = max(frames, min(MOST_FRAMES, (latent_frames - 1) * strides.temporal))
    return frames


class FlowInputs:
    """What the transformer is called with, and what it is compared to.

    Args:
        latents: [B, C, f, h, w], clean and normalised.
        known: the given material.
        sigma: [B].
        noise: [B, N, C].
        strides: pixels per latent.
        frame_rate: of the clips.
        patch_size: latents per token along rows and columns.
        causal, prefix_latent_frames: see `arrange`.

    Attributes:
        hidden_states: [B, K + N, C].
        timestep: [B] where nothing is given, else [B, K + N]; 1000 sigma.
        coordinates: [B, 3, K + N].
        target: [B, N, C], the velocity.
        weight: [B, N], 0 where a token is given.
    """

    def __init__(
        self,
        latents: Tensor,
        known: list[KnownLatents],
        sigma: Tensor,
        noise: Tensor,
        strides: Strides,
        frame_rate: float,
        patch_size: int = 1,
        *,
        causal: bool = True,
        prefix_latent_frames: int | None = None,
    ) -> None:
        batch, channels, *size = latents.shape
        self._latent_frames = size[0]
        self.conditions: ConditionSet = arrange(
            known,
            LatentShape(*size),
            strides,
            frame_rate,
            channels=channels,
            batch=batch,
            causal=causal,
            prefix_latent_frames=prefix_latent_frames,
            patch_size=patch_size,
            device=latents.device,
        )
        clean = pack(latents, patch_size)
        self.hidden_states = self.conditions.noised(noise, sigma, clean)
        per_token = self.conditions.strength
        self.timestep = 1000 * (sigma if self.conditions.is_empty else token_sigmas(sigma, per_token))
        self.coordinates = self.conditions.coordinates
        self.target = velocity_target(clean, noise)
        self.weight = loss_weight(self.conditions.video_tokens(per_token))
        self._given = 0

    def grow(self, frames: int | None) -> None:
        """Take the size that inputs have where `frames` latent frames more are given next to the clip; see `rehearse`.

        Values are not looked at. Where anything is given, each token has a timestep, and with it modulations, of its
        own. None changes nothing.
        """
        if frames is None:
            return
        rows, count, channels = self.hidden_states.shape
        self._given = frames * count // self._latent_frames
        total = count + self._given
        self.hidden_states = torch.cat(
            [self.hidden_states.new_zeros(rows, self._given, channels), self.hidden_states], 1
        )
        self.coordinates = torch.cat([self.coordinates[:, :, :1].expand(-1, -1, self._given), self.coordinates], 2)
        self.timestep = self.timestep.new_zeros(rows, total)

    def errors(self, velocity: Tensor) -> Tensor:
        """Mean squared error of each sample over its unknown tokens: [B, K + N, C] -> [B]."""
        velocity = velocity[:, self._given :]
        squared = (self.conditions.video_tokens(velocity).float() - self.target).square().mean(-1)
        return (squared * self.weight).sum(1) / self.weight.sum(1)


def velocity_errors(transformer: VideoDiT, inputs: FlowInputs, embeds: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error of a transformer's velocity over the unknown tokens of each sample: [B].

    Args:
        transformer: predicts the velocity.
        inputs: what it is called with; the coordinates are the same for all samples.
        embeds: [B, L, D], of the text.
        mask: bool [B, L].
    """
    velocity = transformer(
        inputs.hidden_states.to(transformer.dtype),
        embeds.to(transformer.dtype),
        inputs.timestep,
        encoder_attention_mask=mask,
        video_coords=inputs.coordinates[:1],
        return_dict=False,
    )[0]
    return inputs.errors(velocity)
