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
from torch import Tensor, nn
from torch.nn import functional as F

from vgen.engine.speed.compile import compile_blocks
from vgen.models import VideoDiT
from vgen.pipelines import TextToVideoPipeline
from vgen.training.control import Control
from vgen.training.data.plan import Batch
from vgen.training.model_sources import LOADED, ModelSource
from vgen.training.objectives.base import QUANTILES, Costs, Objective, losses_at_quantiles
from vgen.training.objectives.explicit_attention import use_explicit_attention
from vgen.training.objectives.export import save_pipeline
from vgen.training.objectives.flow.draws import draw_sigmas, mu_of, token_shape
from vgen.training.objectives.flow.tasks import FlowInputs, velocity_errors
from vgen.training.objectives.lora import ADAPTER, add_lora, without_adapters
from vgen.training.objectives.preference.config import PreferenceObjectiveConfig
from vgen.training.objectives.preference.pair_sources import ClipMaker, JudgedPairs
from vgen.training.objectives.preference.pairs import PairCache
from vgen.training.randomness import Keys, generator, key_number
from vgen.training.report.log import save_sheet

_CHUNK = 16


class PreferenceObjective(Objective):
    """Flow-DPO over pairs; what is given is the prompt alone.

    Args:
        config: of the recipe.
        maker: of the model's clips; its transformer is what is trained, the rest is frozen.
        held_out: pairs for validation.
        seed: of the recipe; initialises the LoRA.
        device: where the frozen copy goes.
        models: where the model came from.
    """

    trained_only = True

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
            add_lora(self.transformer, config.lora, key_number(seed, "lora"))
        else:
            self._frozen["reference"] = models.to(copy.deepcopy(self.transformer).requires_grad_(False), device)
            self.transformer.requires_grad_(True)
        for transformer in (self.transformer, self._frozen.get("reference")):
            if transformer is not None and config.explicit_attention:
                use_explicit_attention(transformer)
            if transformer is not None and config.compile_blocks and models.has_weights:
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
        shape = token_shape(batch["chosen"], self.pipeline.patch_size)
        mu = mu_of(self.pipeline.scheduler, shape[1])
        sigma = draw_sigmas(*shape[:2], mu, self.config.uniform_share, keys).to(batch["chosen"])
        noise = keys.normal("noise", shape).to(batch["chosen"])
        preferred, flow, margin = self.pair_losses(batch, sigma, noise)
        loss = preferred.mean() + self.config.flow_weight * flow.mean()
        logs = {
            "loss/preference": preferred.mean(),
            "loss/flow": flow.mean(),
            "accuracy": (margin > 0).float().mean(),
            "margin": margin.mean(),
        }
        return loss, {name: value.detach() for name, value in logs.items()}

    def rehearse(self, batch: Batch, given: int | None = None) -> Tensor:
        """See Objective."""
        shape = token_shape(batch["chosen"], self.pipeline.patch_size)
        latents = batch["chosen"].float()
        sigma, noise = latents.new_zeros(shape[0]), latents.new_zeros(shape)
        preferred, flow, _ = self.pair_losses(batch, sigma, noise, reference=self.transformer)
        return preferred.mean() + self.config.flow_weight * flow.mean()

    def costs(self) -> Costs:
        """See Objective; a row is two clips, forward and backward, and both once more as they were."""
        held = [*self.pipeline.components.values(), self._frozen.get("reference")]
        frozen = [part for part in held if isinstance(part, nn.Module)]
        return Costs(frozen, forwards_per_row=8.0, settings=f"explicit attention: {self.config.explicit_attention}")

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
        embeds, mask = batch["prompt_embeds"].repeat(2, 1, 1), batch["attention_mask"].repeat(2, 1)
        return velocity_errors(transformer, inputs, embeds, mask)

    def tokens(self, batch: Batch) -> int:
        """Those of both clips of every pair."""
        rows, count, _ = token_shape(batch["chosen"], self.pipeline.patch_size)
        return 2 * rows * count

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
                shape = token_shape(batch["chosen"], self.pipeline.patch_size)
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
