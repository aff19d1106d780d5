"""Where a flow's given material, its held-out samples and its prompts come from: SpriteWorld, or cached footage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vgen.diffusion.conditions import KnownLatents
from vgen.models import CausalVideoVAE
from vgen.training.config.data import SpritesConfig
from vgen.training.config.stages import Stage
from vgen.training.data.captioned import tokenize
from vgen.training.data.clips import SpriteClips, to_pixels
from vgen.training.data.footage.source import FootageLatents
from vgen.training.data.latents import encode_clips
from vgen.training.data.plan import RENDERED, Batch
from vgen.training.data.sprites.world import answer_prompts
from vgen.training.objectives.base import QUANTILES, Coding
from vgen.training.objectives.flow.config import FineTuneObjectiveConfig, FlowObjectiveConfig
from vgen.training.objectives.flow.draws import token_shape
from vgen.training.objectives.flow.given_material import Encode, encoded_material, reference_material
from vgen.training.objectives.flow.tasks import CACHED_TASKS, FOOTAGE_TASKS, TASKS, known_latents
from vgen.training.randomness import Keys, generator
from vgen.types import Strides

_CHUNK = 16

Given = tuple[Tensor, list[KnownLatents]]
"""Latents [B, C, f, h, w] to learn, and what of them, or next to them, is given."""


class SpriteMaterial:
    """Clips of SpriteWorld, rendered again for tasks whose material no cached latent can lend.

    Args:
        config: of the recipe.
        clips: for training.
        held_out: for validation.
        tokenizer: of the text encoder.
        vae: encodes the held-out clips.
    """

    tasks: Sequence[str] = TASKS
    """Those that it has material for."""

    def __init__(
        self,
        config: FlowObjectiveConfig,
        clips: SpriteClips,
        held_out: SpriteClips,
        tokenizer: PreTrainedTokenizerBase,
        vae: CausalVideoVAE,
    ) -> None:
        self.config = config
        self.clips = clips
        self.held_out_clips = held_out
        self.tokenizer = tokenizer
        self.vae = vae

    @property
    def data(self) -> SpritesConfig:
        """Of the recipe."""
        return self.clips.config

    @property
    def strides(self) -> Strides:
        """Pixels per latent."""
        return self.vae.strides

    @property
    def canvas(self) -> tuple[int, int]:
        """Rows and columns of the largest clips."""
        return self.clips.canvas

    def frame_rate(self, batch: Batch) -> float:
        """Of a batch's clips."""
        return self.data.frame_rate

    def prepare(self, task: str, batch: Batch, keys: Keys) -> Batch:
        """The batch with what a task needs rendered: "rendered" uint8 [B, F, H, W, 3]."""
        if task in CACHED_TASKS:
            return batch
        return {**batch, RENDERED: self._rendered(task, batch["indices"].tolist(), batch["latents"].shape[2], keys)}

    def given(self, task: str, batch: Batch, keys: Keys, encode: Encode) -> Given:
        """What a task gives of a prepared batch: cached latents where that is right, else rendered clips."""
        latents = batch["latents"].float()
        if task in CACHED_TASKS:
            return latents, known_latents(task, latents, batch.get("last"), self.strides, keys)
        pixels = to_pixels(batch[RENDERED].to(latents.device))
        if task == "turn":  # clips that turn to what their text says at the end of a prefix, and that prefix
            latents = encode(pixels)
            return latents, [KnownLatents(latents[:, :, : self._turn_frames(latents.shape[2], keys)])]
        if task == "reference":
            before = "prefix" if float(torch.rand((), generator=keys.generator("before"))) < 0.6 else "text"
            prefix = known_latents(before, latents, None, self.strides, keys)
            return latents, [*prefix, *reference_material(pixels, encode)]
        return latents, encoded_material(task, pixels, encode, self.strides, keys)

    def _turn_frames(self, latent_frames: int, keys: Keys) -> int:
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
            turn = (self._turn_frames(latent_frames, keys) - 1) * self.strides.temporal
            draws = keys.rows("turns", len(indices), lambda rows, drawn: torch.rand(rows, 2, generator=drawn))
            return self.clips.turns(indices, num_frames, turn, draws)
        return self.clips.stack(indices, num_frames)["frames"]

    def held_out(self, patch_size: int) -> list[Batch]:
        """Batches to validate with, each with its "noise" [B, N, C]."""
        clips, length = self.held_out_clips, self.config.validation_frames
        chunks = [
            list(range(begin, min(begin + _CHUNK, self.config.validation_clips)))
            for begin in range(0, self.config.validation_clips, _CHUNK)
        ]
        frames = (clips.stack(indices, length)["frames"] for indices in chunks)
        latents = torch.cat([encode_clips(self.vae, part)["latents"] for part in frames])
        captions = [clips.world.sample(index, length).caption for indices in chunks for index in indices]
        noise = torch.randn(token_shape(latents, patch_size), generator=generator(0, "validation noise"))
        text = tokenize(self.tokenizer, captions, self.config.text_encoder.max_length)
        whole = {"latents": latents, "noise": noise, **text}
        return [{name: value[indices] for name, value in whole.items()} for indices in chunks]

    def samples(self) -> list[dict[str, Any]]:
        """The call of a pipeline that makes the clips of a sample sheet, from a "prompt" or several."""
        tier = self.data.tier if isinstance(self.data.tier, int) else tuple(self.data.tier)
        prompts = [prompt for prompt, _ in answer_prompts("validation", tier, self.config.sample_clips)]
        sources = [generator(0, "samples", index) for index in range(len(prompts))]
        steps, length = self.config.sample_steps, self.config.validation_frames
        return [{"prompt": prompts, "num_frames": length, "num_inference_steps": steps, "generator": sources}]

    def validation_forwards(self, defaults: Mapping[str, Any]) -> dict[int, float]:
        """See `Costs.validation`; `defaults` are those of the pipeline."""
        config = self.config
        sampled = _branches(config.guidance_scale) * config.sample_steps * config.sample_clips
        return {config.validation_frames: len(QUANTILES) * config.validation_clips + sampled}

    def codings(self, vae: CausalVideoVAE, stages: Sequence[Stage], in_step: bool) -> list[Coding]:
        """See `Costs`: those of the latent cache, of a step if some task encodes in it, and of a sample sheet."""
        config, canvas = self.config, self.canvas
        encoded = [(frames, config.latents.batch) for frames in config.latents.groups]
        encoded += [kind for stage in stages for kind in stage.batch.items()] if in_step else []
        largest = max(encoded, key=lambda kind: kind[0] * kind[1])
        sheet = Coding(vae, "decode", config.validation_frames, canvas, config.sample_clips)
        return [Coding(vae, "encode", largest[0], canvas, largest[1], in_step), *([sheet] if sheet.batch else [])]

    def rendering(self, num_frames: int) -> Callable[[], object] | None:
        """Renders one clip for a task."""
        return partial(self.clips.stack, [0], num_frames)


class FootageMaterial:
    """The samples of a cache; material that no latent can lend is encoded from their pixels.

    Args:
        config: of the recipe.
        source: of the batches.
        strides: pixels per latent.
    """

    tasks: Sequence[str] = FOOTAGE_TASKS

    def __init__(self, config: FineTuneObjectiveConfig, source: FootageLatents, strides: Strides) -> None:
        self.config = config
        self.source = source
        self.strides = strides

    @property
    def canvas(self) -> tuple[int, int]:
        """See SpriteMaterial."""
        return self.source.canvas

    def frame_rate(self, batch: Batch) -> float:
        """See SpriteMaterial."""
        return self.source.frame_rate(batch["indices"].tolist())

    def prepare(self, task: str, batch: Batch, keys: Keys) -> Batch:
        """Nothing is rendered."""
        return batch

    def given(self, task: str, batch: Batch, keys: Keys, encode: Encode) -> Given:
        """See SpriteMaterial."""
        latents = batch["latents"].float()
        if task in CACHED_TASKS:
            return latents, known_latents(task, latents, batch.get("last"), self.strides, keys)
        video = to_pixels(self.source.pixels(batch["indices"].tolist()).to(latents.device))
        if task == "reference":
            frame = int(torch.randint(video.shape[2], (), generator=keys.generator("reference")))
            return latents, reference_material(video[:, :, frame : frame + 1], encode)
        return latents, encoded_material(task, video, encode, self.strides, keys)

    def held_out(self, patch_size: int) -> list[Batch]:
        """Samples spread over the data set, each with noise of its own."""
        source, count = self.source, min(self.config.validation_samples, len(self.source.samples))
        batches = []
        for place in (round(number * (len(source.samples) - 1) / max(1, count - 1)) for number in range(count)):
            text = source.captions[source.samples[place].clip][0]
            batch = {**source.stack([place]), **source.encoding([text])}
            drawn = generator(0, "validation noise", place)
            batches.append({**batch, "noise": torch.randn(token_shape(batch["latents"], patch_size), generator=drawn)})
        return batches

    def samples(self) -> list[dict[str, Any]]:
        """One call for each of the first captions."""
        return [self.sample(prompt) for prompt in self.source.prompts()[: self.config.sample_clips]]

    def sample(self, prompt: str, seed: int = 0) -> dict[str, Any]:
        """A call that makes a clip from a caption, in the size of the caption's first sample."""
        source = self.source
        bucket = next(sample.bucket for sample in source.samples if prompt in source.captions[sample.clip])
        return {"prompt": prompt, **bucket._asdict(), "generator": torch.Generator().manual_seed(seed)}

    def validation_forwards(self, defaults: Mapping[str, Any]) -> dict[int, float]:
        """See SpriteMaterial."""
        clips = min(self.config.sample_clips, len(self.source.prompts()))
        sampled = _branches(defaults.get("guidance_scale", 1)) * defaults.get("num_inference_steps", 1) * clips
        measured = len(QUANTILES) * min(self.config.validation_samples, len(self.source.samples))
        return {self._longest: measured + sampled}

    def codings(self, vae: CausalVideoVAE, stages: Sequence[Stage], in_step: bool) -> list[Coding]:
        """Those of a step, and of one clip of a sample sheet."""
        found = [Coding(vae, "decode", self._longest, self.canvas, 1)] if self.config.sample_clips else []
        kinds = [kind for stage in stages for kind in stage.batch.items()] if in_step else []
        for frames, batch in sorted(kinds, key=lambda kind: kind[0] * kind[1])[-1:]:
            found.append(Coding(vae, "encode", frames, self.canvas, batch, in_step))
        return found

    def rendering(self, num_frames: int) -> Callable[[], object] | None:
        """Nothing: pixels are remembered once they have been read."""
        return None

    @property
    def _longest(self) -> int:
        return max(sample.bucket.num_frames for sample in self.source.samples)


def _branches(guidance_scale: float | list[float]) -> int:
    return 1 if guidance_scale == 1 else 2


Material = SpriteMaterial | FootageMaterial
"""What a flow learns from besides the latents of its batches."""
