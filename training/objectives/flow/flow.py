"""Flow matching of the video transformer on cached latents, its text encoder trained along."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vgen.diffusion.conditions import KnownLatents
from vgen.engine.speed.compile import compile_blocks
from vgen.errors import RequestError
from vgen.models import CausalVideoVAE, VideoDiT
from vgen.pipelines.text_to_video import TextToVideoPipeline
from vgen.training.control import Control
from vgen.training.data.captioned import tokenize
from vgen.training.data.clips import SpriteClips, to_pixels
from vgen.training.data.latents import encode_clips
from vgen.training.data.plan import RENDERED, Batch, BatchPlan
from vgen.training.data.sprites.world import answer_prompts
from vgen.training.model_sources import LOADED, ModelSource
from vgen.training.objectives.base import Objective, losses_at_quantiles
from vgen.training.objectives.explicit_attention import use_explicit_attention
from vgen.training.objectives.export import save_pipeline
from vgen.training.objectives.flow.draws import FlowDraws, token_shape
from vgen.training.objectives.flow.given_material import encoded_material, reference_material
from vgen.training.objectives.flow.tasks import (
    CACHED_TASKS,
    FlowInputs,
    known_latents,
    most_tokens_beside,
    tasks_of,
)
from vgen.training.objectives.flow.text_encoder import build_text_encoder
from vgen.training.objectives.statement import sprites_statement
from vgen.training.precision import computes_bfloat16
from vgen.training.randomness import Keys, generator
from vgen.training.recipe import FlowObjectiveConfig, SpritesConfig
from vgen.training.report.log import save_sheet

_BUCKETS = 4
_CHUNK = 16


class FlowObjective(Objective):
    """Mean squared error of the velocity over unknown tokens, at a sigma of each token's own.

    Args:
        config: of the recipe.
        data: size and frame rate of the clips.
        seed: of the recipe; initialises the weights.
        vae: frozen, for validation samples and the export.
        tokenizer: of the text encoder.
        clips: training clips, for tasks whose given part is encoded when it is drawn.
        held_out: validation clips.
        plan: says which stage of the recipe a step belongs to.
        models: where `init` comes from.
    """

    def __init__(
        self,
        config: FlowObjectiveConfig,
        data: SpritesConfig,
        seed: int,
        vae: CausalVideoVAE,
        tokenizer: PreTrainedTokenizerBase,
        clips: SpriteClips,
        held_out: SpriteClips,
        plan: BatchPlan,
        models: ModelSource = LOADED,
    ) -> None:
        super().__init__()
        self.config = config
        self.plan = plan
        self.data = data
        self.tokenizer = tokenizer
        self.clips = clips
        self.held_out = held_out
        self.strides = vae.strides
        self.transformer = build_transformer(config, vae.config.latent_channels, seed, models)
        if config.explicit_attention:
            use_explicit_attention(self.transformer)
        if config.compile_blocks:
            compile_blocks(self.transformer)
        self.text_encoder = build_text_encoder(config, len(tokenizer), seed, models)
        self._frozen = {"vae": vae}  # a dictionary keeps it out of the trained modules
        self._fixed: dict[str, Tensor] = {}

    @property
    def patch_size(self) -> int:
        """Latents per token along rows and columns."""
        return self.transformer.config.patch_size

    @property
    def vae(self) -> CausalVideoVAE:
        """The frozen autoencoder."""
        return self._frozen["vae"]

    @property
    def draws(self) -> FlowDraws:
        """Makes what a step needs beside its batch."""
        return FlowDraws(self.config, self.plan, self.clips, self.strides, self.patch_size)

    def prepare(self, batch: Batch, keys: Keys) -> Batch:
        """See `FlowDraws`."""
        return self.draws(batch, keys)

    def loss(self, batch: Batch, keys: Keys) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of one micro-batch {"latents", "last", "input_ids", "attention_mask", "indices"}, prepared or not."""
        batch = batch if "noise" in batch else self.prepare(batch, keys)
        latents = batch["latents"].float()
        task = self.draws.task(latents.shape[2], keys)
        if task == "turn":
            latents, known = self._turn(batch, keys)
        else:
            known = self._known(task, batch, keys)
        sigma = self.draws.sigma(*self._token_shape(latents)[:2], keys)
        inputs = self._inputs(latents, known, sigma.to(latents, non_blocking=True), batch["noise"].to(latents))
        errors = inputs.errors(self._velocity(inputs, batch))
        loss = errors.mean()
        return loss, {f"loss/{task}": loss.detach(), **_by_sigma(errors.detach(), sigma)}

    def rehearse(self, batch: Batch) -> Tensor:
        """The loss where nothing is given."""
        return self._rehearsed(batch, ())

    def rehearse_most(self, batch: Batch) -> Tensor:
        """The loss where as much is given as any task of the recipe gives."""
        return self._rehearsed(batch, self.drawn_tasks())

    def drawn_tasks(self) -> set[str]:
        """Those of all stages."""
        return tasks_of(stage.tasks or self.config.tasks for stage in self.plan.stages)

    def _rehearsed(self, batch: Batch, tasks: Collection[str]) -> Tensor:
        latents = batch["latents"].float()
        shape = self._token_shape(latents)
        inputs = self._inputs(latents, [], latents.new_zeros(shape[0]), latents.new_zeros(shape))
        inputs.grow(most_tokens_beside(tasks, latents.shape[2], self.strides))
        embeds = self.text_encoder(batch["input_ids"])[0]  # given a mask, it would look whether anything is hidden
        return inputs.errors(self._transformed(inputs, embeds, batch["attention_mask"].bool())).mean()

    def tokens(self, batch: Batch) -> int:
        """Those of the clips; what is given beside them does not count."""
        rows, count, _ = self._token_shape(batch["latents"])
        return rows * count

    def _known(self, task: str, batch: Batch, keys: Keys) -> list[KnownLatents]:
        """What is given: out of the cached latents where that is right, else rendered again and encoded apart."""
        latents = batch["latents"].float()
        if task in CACHED_TASKS:
            return known_latents(task, latents, batch.get("last"), self.strides, keys)
        pixels = to_pixels(batch[RENDERED].to(latents.device))
        if task == "reference":
            before = "prefix" if float(torch.rand((), generator=keys.generator("before"))) < 0.6 else "text"
            prefix = known_latents(before, latents, None, self.strides, keys)
            return [*prefix, *reference_material(pixels, self._encode)]
        return encoded_material(task, pixels, self._encode, self.strides, keys)

    def _turn(self, batch: Batch, keys: Keys) -> tuple[Tensor, list[KnownLatents]]:
        """Clips that turn to what their text says at the end of a prefix, and that prefix."""
        latents = self._encode(to_pixels(batch[RENDERED].to(batch["latents"].device)))
        count = self.draws.turn_frames(latents.shape[2], keys)
        return latents, [KnownLatents(latents[:, :, :count])]

    def _encode(self, video: Tensor) -> Tensor:
        """Pixels [B, 3, F, H, W] in [-1, 1] to normalised latents, without gradients, as the latent cache does it."""
        bfloat16 = self.config.latents.encode_dtype == "bfloat16" and computes_bfloat16(video.device)
        with torch.no_grad(), torch.autocast(video.device.type, torch.bfloat16, enabled=bfloat16):
            latents = self.vae.encode(video).latent_dist.mode()
        return self.vae.normalize(latents.float())

    def _token_shape(self, latents: Tensor) -> tuple[int, int, int]:
        """(B, N, C) of the tokens of latents [B, C, f, h, w]."""
        return token_shape(latents, self.patch_size)

    def _inputs(self, latents: Tensor, known: list[KnownLatents], sigma: Tensor, noise: Tensor) -> FlowInputs:
        return FlowInputs(latents, known, sigma, noise, self.strides, self.data.frame_rate, self.patch_size)

    def _velocity(self, inputs: FlowInputs, batch: Batch) -> Tensor:
        mask = batch["attention_mask"].bool()
        embeds = self.text_encoder(batch["input_ids"], attention_mask=mask)[0]
        return self._transformed(inputs, embeds, mask)

    def _transformed(self, inputs: FlowInputs, embeds: Tensor, mask: Tensor) -> Tensor:
        return self.transformer(
            inputs.hidden_states,
            embeds,
            inputs.timestep,
            encoder_attention_mask=mask,
            video_coords=inputs.coordinates[:1],  # the same for all samples
            return_dict=False,
        )[0]

    def validate(self, step: int, folder: Path, control: Control) -> dict[str, float]:
        """Loss at fixed quantiles of sigma on fixed noise and clips, and a sheet of generated clips."""
        measured = self._fixed_losses(control)
        if self.config.sample_clips:
            save_sheet(folder / f"step-{step:08d}.png", self._samples(control), self.prompts())
        return measured

    def _fixed_losses(self, control: Control) -> dict[str, float]:
        device = next(self.transformer.parameters()).device
        fixed = self._fixed or self._prepare_validation()

        def loss(quantile: float) -> float:
            total = 0.0
            for begin in range(0, self.config.validation_clips, _CHUNK):
                control.poll()
                part = {name: value[begin : begin + _CHUNK].to(device) for name, value in fixed.items()}
                sigma = torch.full((part["latents"].shape[0],), quantile, device=device)
                inputs = self._inputs(part["latents"], [], sigma, part["noise"])
                total += float(inputs.errors(self._velocity(inputs, part)).sum())
            return total / self.config.validation_clips

        return losses_at_quantiles(loss)

    def _prepare_validation(self) -> dict[str, Tensor]:
        indices = list(range(self.config.validation_clips))
        num_frames = self.config.validation_frames
        latents = torch.cat(
            [
                encode_clips(self.vae, self.held_out.stack(indices[begin : begin + _CHUNK], num_frames)["frames"])[
                    "latents"
                ]
                for begin in range(0, len(indices), _CHUNK)
            ]
        )
        captions = [self.held_out.world.sample(index, num_frames).caption for index in indices]
        shape = self._token_shape(latents)
        self._fixed = {
            "latents": latents,
            "noise": torch.randn(shape, generator=generator(0, "validation noise")),
            **tokenize(self.tokenizer, captions, self.config.text_encoder.max_length),
        }
        return self._fixed

    def prompts(self) -> list[str]:
        """The prompts of the sample sheets."""
        tier = self.data.tier if isinstance(self.data.tier, int) else tuple(self.data.tier)
        return [prompt for prompt, _ in answer_prompts("validation", tier, self.config.sample_clips)]

    def _samples(self, control: Control) -> list[Any]:
        def poll(pipeline: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            control.poll()
            return {}

        pipeline = self.pipeline()
        pipeline.set_progress_bar_config(disable=True)
        prompts = self.prompts()
        made = pipeline(
            prompt=prompts,
            num_frames=self.config.validation_frames,
            generator=[generator(0, "samples", index) for index in range(len(prompts))],
            num_inference_steps=self.config.sample_steps,
            output_type="np",
            callback_on_step_end=poll,
        ).frames
        return [(clip * 255).round().astype("uint8") for clip in made]

    def pipeline(self) -> TextToVideoPipeline:
        """A text-to-video pipeline of the present weights; it shares them."""
        return TextToVideoPipeline(
            transformer=self.transformer,
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            scheduler=build_scheduler(self.config),
            defaults=self.defaults(),
        )

    def defaults(self) -> dict[str, Any]:
        """What a pipeline of this model does when not told otherwise."""
        return {
            "height": self.data.height,
            "width": self.data.width,
            "num_frames": self.config.validation_frames,
            "frame_rate": self.data.frame_rate,
            "num_inference_steps": self.config.sample_steps,
            "guidance_scale": self.config.guidance_scale,
            "max_sequence_length": self.config.text_encoder.max_length,
            **self.config.defaults,
        }

    def finish(self, folder: Path, dtype: torch.dtype, control: Control) -> dict[str, float]:
        """Save a whole pipeline folder."""
        self.eval()
        pipeline = self.pipeline()
        lengths = {count for stage in self.plan.stages for count, share in stage.frames.items() if share > 0}
        pipeline.register_to_config(trained=sprites_statement(self.data, lengths, self.vae))
        return {"mebibytes": save_pipeline(pipeline, folder, dtype)}


def build_transformer(
    config: FlowObjectiveConfig, latent_channels: int, seed: int, models: ModelSource = LOADED
) -> VideoDiT:
    """A fresh transformer from the recipe's `model`, or the one of the pipeline folder in `init`.

    Channels of latents and text, and the width of cross-attention, follow from the other parts and may be left out.
    """
    if config.init is not None:
        return models.transformer(config.init)
    channels = latent_channels * config.model.get("patch_size", 1) ** 2
    model = {
        "in_channels": channels,
        "out_channels": channels,
        "caption_channels": config.text_encoder.d_model,
        **config.model,
    }
    if {"num_attention_heads", "attention_head_dim"} <= set(model):
        model.setdefault("cross_attention_dim", model["num_attention_heads"] * model["attention_head_dim"])
    try:
        return models.fresh(lambda: VideoDiT(**model), lambda made: made.init_weights(generator(seed, "weights")))
    except TypeError as error:
        raise RequestError(f"objective.model does not fit VideoDiT: {error}") from None


def build_scheduler(config: FlowObjectiveConfig) -> FlowMatchEulerDiscreteScheduler:
    """The sampling schedule that belongs to the training density: shifted by e^mu, mu linear in the token count."""
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=config.shift.base_shift,
        max_shift=config.shift.max_shift,
        base_image_seq_len=config.shift.base_tokens,
        max_image_seq_len=config.shift.max_tokens,
        shift_terminal=config.shift_terminal,
    )


def _by_sigma(errors: Tensor, sigma: Tensor) -> dict[str, Tensor]:
    """Mean loss of the samples in each quarter of [0, 1]; sigma is on the CPU, so that no GPU has to be waited for."""
    present, bucket = (sigma * _BUCKETS).long().clamp(max=_BUCKETS - 1).unique(return_inverse=True)
    share = torch.nn.functional.one_hot(bucket).T.to(errors.dtype)
    means = ((share / share.sum(1, keepdim=True)).to(errors.device, non_blocking=True) * errors).sum(1)
    return {f"loss/sigma_{value / _BUCKETS}": mean for value, mean in zip(present.tolist(), means, strict=True)}
