"""Preferences: Flow-DPO moves a finished model towards the preferred clip of each pair, and away from the other.

With e = mean squared error of the velocity at a sigma and a noise that both clips of a pair share,

    loss = -log sigmoid(-beta / 2 ((e_chosen - e_chosen_ref) - (e_rejected - e_rejected_ref))),

where ref is the model as it was. Diffusion-DPO for flows, as in Step-Video-T2V and VideoAlign, with a constant beta.
"""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vgen.diffusion.schedules import sample_training_sigmas
from vgen.engine.speed.compile import compile_blocks
from vgen.errors import RequestError
from vgen.hub.find import model_hash, resolve_model
from vgen.models import VideoDiT
from vgen.pipelines import TextToVideoPipeline
from vgen.training.control import Control
from vgen.training.data.clips import SpriteClips
from vgen.training.data.plan import Batch
from vgen.training.data.prompts import SpritePrompts
from vgen.training.model_sources import LOADED, ModelSource
from vgen.training.objectives.base import QUANTILES, TrainedOnly, losses_at_quantiles
from vgen.training.objectives.explicit_attention import use_explicit_attention
from vgen.training.objectives.export import save_pipeline
from vgen.training.objectives.flow.density import scheduler_mu
from vgen.training.objectives.flow.tasks import FlowInputs
from vgen.training.objectives.lora import ADAPTER, add_lora, without_adapters
from vgen.training.objectives.preference.config import PreferenceObjectiveConfig
from vgen.training.objectives.preference.pair_sources import ClipMaker, JudgedPairs, PairFile, read_pair_file
from vgen.training.objectives.preference.pairs import PairBatches, PairCache
from vgen.training.randomness import Keys, generator
from vgen.training.recipe import Recipe, SpritesConfig
from vgen.training.report.log import save_sheet

_CHUNK = 16


class PreferenceObjective(TrainedOnly):
    """Flow-DPO over pairs; what is given is the prompt alone.

    Args:
        config: of the recipe.
        maker: of the model's clips; its transformer is what is trained, the rest is frozen.
        held_out: pairs for validation.
        seed: of the recipe; initialises the LoRA.
        device: where the frozen copy goes.
        models: where the model came from.
    """

    def __init__(
        self,
        config: PreferenceObjectiveConfig,
        maker: ClipMaker,
        held_out: PairCache,
        seed: int,
        device: torch.device | str = "cpu",
        models: ModelSource = LOADED,
    ) -> None:
        super().__init__()
        self.config = config
        self.transformer: VideoDiT = maker.pipeline.transformer
        # A dictionary keeps what is frozen out of the trained modules.
        self._frozen: dict[str, Any] = {"maker": maker, "held_out": held_out}
        if config.train == "lora":
            add_lora(self.transformer, config.lora, seed)
        else:
            self._frozen["reference"] = models.to(copy.deepcopy(self.transformer).requires_grad_(False), device)
            self.transformer.requires_grad_(True)
        for transformer in (self.transformer, self._frozen.get("reference")):
            if transformer is not None and config.explicit_attention:
                use_explicit_attention(transformer)
            if transformer is not None and config.compile_blocks:
                compile_blocks(transformer)

    @property
    def maker(self) -> ClipMaker:
        """Makes clips with the present weights."""
        return self._frozen["maker"]

    @property
    def pipeline(self) -> TextToVideoPipeline:
        """The pipeline that the transformer is part of."""
        return self.maker.pipeline

    def loss(self, batch: Batch, keys: Keys) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of one micro-batch of pairs."""
        rows, tokens, channels = self._token_shape(batch["chosen"])
        mu = scheduler_mu(self.pipeline.scheduler, tokens)

        def draw(count: int, drawn: torch.Generator) -> Tensor:
            return sample_training_sigmas(count, tokens, drawn, uniform_share=self.config.uniform_share, mu=mu)

        sigma = keys.rows("sigma", rows, draw).to(batch["chosen"])
        noise = keys.normal("noise", (rows, tokens, channels)).to(batch["chosen"])
        preferred, flow, margin = self.pair_losses(batch, sigma, noise)
        loss = preferred.mean() + self.config.flow_weight * flow.mean()
        logs = {
            "loss/preference": preferred.mean(),
            "loss/flow": flow.mean(),
            "accuracy": (margin > 0).float().mean(),
            "margin": margin.mean(),
        }
        return loss, {name: value.detach() for name, value in logs.items()}

    def rehearse(self, batch: Batch) -> Tensor:
        """The loss without looking at values."""
        shape = self._token_shape(batch["chosen"])
        latents = batch["chosen"].float()
        sigma, noise = latents.new_zeros(shape[0]), latents.new_zeros(shape)
        preferred, flow, _ = self.pair_losses(batch, sigma, noise, reference=self.transformer)
        return preferred.mean() + self.config.flow_weight * flow.mean()

    def pair_losses(
        self, batch: Batch, sigma: Tensor, noise: Tensor, reference: VideoDiT | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss of each pair, the flow-matching error of what is chosen, and the margin; [B] each.

        Args:
            batch: of `PairCache.rows`.
            sigma: [B], the same for both clips of a pair.
            noise: [B, N, C], likewise.
            reference: in place of the model as it was; for a rehearsal, which has no other weights.
        Returns:
            The margin is how much more the error has fallen on what is chosen than on what is rejected, since the
            reference: what the loss is -log sigmoid of, over beta / 2.
        """
        inputs = self._inputs(batch, sigma, noise)
        chosen, rejected = self._errors(self.transformer, inputs, batch).chunk(2)
        with torch.no_grad(), self._as_reference():
            reference = reference or self._frozen.get("reference", self.transformer)
            chosen_ref, rejected_ref = self._errors(reference, inputs, batch).chunk(2)
        margin = (rejected - rejected_ref) - (chosen - chosen_ref)
        return -F.logsigmoid(self.config.beta / 2 * margin), chosen, margin

    def _as_reference(self) -> AbstractContextManager[None]:
        return without_adapters(self.transformer) if self.config.train == "lora" else nullcontext()

    def _inputs(self, batch: Batch, sigma: Tensor, noise: Tensor) -> FlowInputs:
        convention = self.pipeline.model_convention
        return FlowInputs(
            torch.cat([batch["chosen"], batch["rejected"]]).float(),
            [],
            sigma.repeat(2),
            noise.repeat(2, 1, 1),
            self.pipeline.vae.strides,
            self.maker.settings.frame_rate,
            self.pipeline.patch_size,
            causal=convention.causal_coordinates,
            prefix_latent_frames=convention.prefix_latent_frames,
        )

    def _errors(self, transformer: VideoDiT, inputs: FlowInputs, batch: Batch) -> Tensor:
        velocity = transformer(
            inputs.hidden_states.to(transformer.dtype),
            batch["prompt_embeds"].to(transformer.dtype).repeat(2, 1, 1),
            inputs.timestep,
            encoder_attention_mask=batch["attention_mask"].repeat(2, 1),
            video_coords=inputs.coordinates[:1],
            return_dict=False,
        )[0]
        return inputs.errors(velocity)

    def tokens(self, batch: Batch) -> int:
        """Those of both clips of every pair."""
        rows, count, _ = self._token_shape(batch["chosen"])
        return 2 * rows * count

    def _token_shape(self, latents: Tensor) -> tuple[int, int, int]:
        per_token = self.pipeline.patch_size**2
        return latents.shape[0], latents.shape[2:].numel() // per_token, latents.shape[1] * per_token

    @torch.no_grad()
    def validate(self, step: int, folder: Path, control: Control) -> dict[str, float]:
        """On held-out pairs, the loss and how often the margin is right, at fixed quantiles of sigma and fixed noise.

        With SpriteWorld's prompts also `joint`, how often a judge finds in the present model's clips what was asked
        for, and a sheet of them.
        """
        measured = self._fixed_losses(control)
        source = self._frozen["held_out"].source
        if isinstance(source, JudgedPairs):
            texts, clips, right = self._samples(source, control)
            measured["joint"] = float(np.mean(right))
            shown = min(self.config.sample_clips, len(clips))
            if shown:
                save_sheet(folder / f"step-{step:08d}.png", clips[:shown], texts[:shown])
        return measured

    def _fixed_losses(self, control: Control) -> dict[str, float]:
        held_out: PairCache = self._frozen["held_out"]
        device, count = next(self.transformer.parameters()).device, len(held_out)
        right = 0.0

        def loss(quantile: float) -> float:
            nonlocal right
            total = 0.0
            for begin in range(0, count, _CHUNK):
                control.poll()
                indices = list(range(begin, min(begin + _CHUNK, count)))
                batch = {name: value.to(device) for name, value in held_out.rows(indices).items()}
                shape = self._token_shape(batch["chosen"])
                source = generator(0, "validation noise", begin)
                noise = torch.randn(shape, generator=source).to(device)
                sigma = torch.full((shape[0],), quantile, device=device)
                preferred, _, margin = self.pair_losses(batch, sigma, noise)
                total += float(preferred.sum()) / count
                right += float((margin > 0).sum()) / count / len(QUANTILES)
            return total

        measured = losses_at_quantiles(loss)
        return {**measured, "accuracy": right}

    def _samples(self, source: JudgedPairs, control: Control) -> tuple[list[str], list[np.ndarray], list[bool]]:
        texts = [source.prompt(place) for place in range(source.count)]
        clips: list[np.ndarray] = []
        for begin in range(0, source.count, source.config.batch):
            part = range(begin, min(begin + source.config.batch, source.count))
            sources = [generator(0, "samples", place) for place in part]
            clips.extend(self.maker.make([texts[place] for place in part], sources, control)[1])
        return texts, clips, [source.is_right(place, clip) for place, clip in enumerate(clips)]

    def finish(self, folder: Path, dtype: torch.dtype, control: Control) -> dict[str, float]:
        """Save the LoRA as diffusers does, or the whole pipeline."""
        self.eval()
        if self.config.train == "lora":
            return {"mebibytes": self.pipeline.save_lora(folder, ADAPTER).stat().st_size / 2**20}
        return {"mebibytes": save_pipeline(self.pipeline, folder, dtype)}


def preference(
    recipe: Recipe, folder: Path, device: torch.device, models: ModelSource = LOADED
) -> tuple[PreferenceObjective, list[PairCache], PairBatches]:
    """The objective, the caches that are to be filled before it is used, and the source of its batches.

    Args:
        recipe: with a preference objective.
        folder: of the run.
        device: where clips are made.
        models: where the model comes from.
    Raises:
        RequestError: the model has no text encoder or was distilled, or the file of pairs is wrong or too short.
    """
    config = recipe.objective
    assert isinstance(config, PreferenceObjectiveConfig) and isinstance(recipe.data, SpritesConfig)
    lines = None if config.pairs.file is None else _split_file(config.pairs.file, config.validation_prompts)
    model = resolve_model(config.model)
    pipeline = models.pipeline(str(model), torch_dtype=torch.float32, device=device)
    pipeline.set_progress_bar_config(disable=True)
    if pipeline.text_encoder is None:
        raise RequestError(f"model={config.model!r} has no text encoder: give a folder with text_encoder/.")
    if pipeline.config.defaults.get("distilled"):
        raise RequestError(f"model={config.model!r} is distilled: it knows no other sigmas; give what it came from.")
    pipeline.vae.requires_grad_(False)
    pipeline.text_encoder.requires_grad_(False)
    maker = ClipMaker(pipeline, config.pairs)
    sources = [PairFile(part, maker) for part in lines] if lines else _judged_sources(recipe, config, maker)
    caches = [PairCache(config.pairs, source, maker, model_hash(model), folder / "pairs") for source in sources]
    return PreferenceObjective(config, maker, caches[1], recipe.seed, device, models), caches, PairBatches(caches[0])


def _judged_sources(recipe: Recipe, config: PreferenceObjectiveConfig, maker: ClipMaker) -> list[JudgedPairs]:
    assert isinstance(recipe.data, SpritesConfig)
    asked, made = (recipe.data.height, recipe.data.width), (maker.settings.height, maker.settings.width)
    if asked != made:
        raise RequestError(
            f"data.height={asked[0]} and data.width={asked[1]} are not what {config.model} makes by itself: use "
            f"{made[0]} and {made[1]}."
        )
    counts = {"train": config.pairs.prompts, "validation": config.validation_prompts}
    return [
        JudgedPairs(
            config.pairs, SpritePrompts(SpriteClips(recipe.data, split), True), maker, recipe.seed + place, count
        )
        for place, (split, count) in enumerate(counts.items())
    ]


def _split_file(path: Path, held_out: int) -> list[list[dict[str, str]]]:
    """The lines of a file of pairs, and the last of them, which are held out."""
    lines = read_pair_file(path)
    if held_out >= len(lines):
        raise RequestError(
            f"objective.validation_prompts={held_out} leaves none of the {len(lines)} pairs of {path} to train on; use "
            f"at most {len(lines) - 1}."
        )
    return [lines[:-held_out], lines[-held_out:]]
