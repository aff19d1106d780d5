"""The base of all pipelines: check, encode, denoise, decode. Here is the only denoising loop.

A task is a choice of known tokens, a call is a list of passes; the loop knows none by name. Its strategies (guidance,
schedule, numerical conventions) are handed to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import PIL.Image
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils import BaseOutput
from torch import Tensor

from vgen.diffusion.conditions import ConditionSet, KnownLatents, arrange, token_sigmas
from vgen.diffusion.guidance import Branch, ClassifierFreeGuidance, Guidance, StepState
from vgen.diffusion.samplers import advance, renoise_hard
from vgen.diffusion.tokens import unpack
from vgen.engine.lossy.magnitudes import Magnitudes
from vgen.engine.lossy.step_cache import cached_steps
from vgen.engine.processes.parallel import BranchParallel
from vgen.engine.session import denoising, inference_session
from vgen.errors import NonFiniteError
from vgen.events import Decoding, Encoding, Observer
from vgen.pipelines.call.checks import check_call
from vgen.pipelines.call.noise import draw
from vgen.pipelines.call.progress import CallSteps
from vgen.pipelines.call.schedule_and_guidance import largest_scale, loop_timesteps, sampling, set_schedule
from vgen.pipelines.call.settings import GenerationSettings
from vgen.pipelines.coding.coder import Coder
from vgen.pipelines.coding.decode import decode_frames
from vgen.pipelines.coding.encode import prepare_noise_and_known
from vgen.pipelines.coding.given_pixels import Conditions, GivenPixels, read_conditions
from vgen.pipelines.loading.pipeline import ModelPipeline
from vgen.pipelines.passes.passes import Pass
from vgen.pipelines.passes.plan import plan_call
from vgen.pipelines.text.encoder import TextEmbeddings
from vgen.types import LatentShape


@dataclass
class VideoPipelineOutput(BaseOutput):
    """The generated clips.

    Attributes:
        frames: by `output_type`: "pil", a list of lists of pictures; "np", [B, F, H, W, 3] in [0, 1]; "pt",
            [B, F, 3, H, W] in [0, 1]; "uint8", an array [B, F, H, W, 3], rounded and copied piece by piece as the
            decoder gives it out; "latent", normalised latents [B, C, f, h, w].
    """

    frames: list[list[PIL.Image.Image]] | np.ndarray | Tensor


class BasePipeline(ModelPipeline):
    """A model's components, and the way from a prompt and known pixels to frames."""

    _callback_tensor_inputs: ClassVar[list[str]] = ["latents", "prompt_embeds", "negative_prompt_embeds"]
    branch_parallel: BranchParallel | None = None
    """Where set, the branches of a guidance are spread over several processes."""
    magnitudes: Magnitudes | None = None
    """Of the model, for the step cache magcache; see `vgen.engine.lossy.step_cache.measure_magnitudes`."""
    observer: Observer | None = None
    """Where set, called with what a call is doing; see `vgen.events`."""
    previews: bool = False
    """Whether the observer is also given a `Preview` of every step."""
    _settings: GenerationSettings | None = None
    _guidance: Guidance = ClassifierFreeGuidance()
    _interrupt: bool = False
    _num_timesteps: int = 0
    _current_timestep: Tensor | None = None

    @property
    def guidance_scale(self) -> float:
        """Guidance scale of the current or last pass; of a list the largest."""
        return largest_scale(self._settings) if self._settings else 1.0

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the current or last pass uses the negative prompt."""
        return self._guidance.needs_negative

    @property
    def num_timesteps(self) -> int:
        """Steps of the current or last call, those of a draft and of both of two passes included."""
        return self._num_timesteps

    @property
    def current_timestep(self) -> Tensor | None:
        """Timestep of the current step, None outside the loop."""
        return self._current_timestep

    @property
    def interrupt(self) -> bool:
        """Set `_interrupt` (in a callback) to leave out all further steps, those after a draft included."""
        return self._interrupt

    def fill_settings(self, given: Mapping[str, Any]) -> GenerationSettings:
        """The settings of a call: the caller's, then the model's defaults, then the convention's."""
        of_scheduler = {name: self.scheduler.config.get(name) for name in ("sigmas", "allowed_inference_steps")}
        planned = self.placement.settings if self.placement is not None else {}
        settings = GenerationSettings.fill(
            given, planned, self.lora_defaults(), self.config.defaults, of_scheduler, self.convention.defaults
        )
        callback = settings.callback_on_step_end
        if isinstance(callback, (PipelineCallback, MultiPipelineCallbacks)):
            return settings.replace(callback_on_step_end_tensor_inputs=tuple(callback.tensor_inputs))
        return settings

    def check_inputs(
        self, settings: GenerationSettings, conditions: Conditions = ()
    ) -> tuple[LatentShape, list[GivenPixels]]:
        """Refuse what cannot work, before anything is computed.

        Returns:
            The latent size, and the conditions as pixels.
        Raises:
            RequestError: names the field, the value, the rule and what would fit.
        """
        shape = check_call(self, settings)
        given = read_conditions(
            conditions, settings.shape, self.vae.strides, settings.num_prompts, self.convention.prefix_latent_frames
        )
        return shape, given

    def encode_ahead(self, prompts: Sequence[str], negative_prompt: str = "") -> None:
        """Encode what many calls are going to ask for, so that a deferred text encoder is loaded but once.

        Args:
            prompts: of the calls.
            negative_prompt: of all of them.
        """
        if self.text_encoder is None and self.deferred_text is not None:
            length = self.fill_settings({}).max_sequence_length
            self.encode_prompt([*prompts, negative_prompt], None, False, max_sequence_length=length)

    def coder(self, settings: GenerationSettings) -> Coder:
        """What encodes and decodes for a pass with these settings."""
        return Coder(self.vae, settings, self.convention, self.transformer.dtype)

    def prepare_latents(
        self,
        settings: GenerationSettings,
        shape: LatentShape,
        given: Sequence[GivenPixels],
        device: torch.device,
        known_latents: Sequence[KnownLatents] = (),
    ) -> tuple[Tensor, ConditionSet]:
        """Draw the noise, encode what is given, and lay it out as tokens, next to what is known as latents already.

        Returns:
            Noise tokens [B, N, C], and the known tokens.
        """
        noise, known = prepare_noise_and_known(self.coder(settings), given, shape, self.patch_size, device)
        conditions = arrange(
            [*known_latents, *known],
            shape,
            self.vae.strides,
            settings.frame_rate,
            channels=self.vae.config.latent_channels,
            batch=settings.batch_size,
            causal=self.convention.causal_coordinates,
            prefix_latent_frames=self.convention.prefix_latent_frames,
            patch_size=self.patch_size,
            device=device,
        )
        return noise, conditions

    @torch.no_grad()
    def _generate(
        self,
        given_settings: Mapping[str, Any],
        conditions: Conditions = (),
        clip: GivenPixels | Tensor | None = None,
    ) -> Any:
        """A call of any task: settings, conditions and perhaps a clip to start from in, clips out."""
        with inference_session(self):
            call = plan_call(self, given_settings, conditions, clip)
            self._interrupt, self._num_timesteps = False, call.num_steps
            with self.progress_bar(total=call.num_steps) as bar:
                steps = CallSteps(self, call.num_steps, bar)
                steps.emit(Encoding())
                text = self._encode_text(call.passes[0].settings, call.needs_negative)
                latents = call.run(self, steps, text)
                if call.settings.output_type != "latent":
                    steps.emit(Decoding())
            coder = self.coder(call.passes[-1].settings)
            frames = decode_frames(coder, latents, call.settings, call.given, self.video_processor)
            self.maybe_free_model_hooks()
            return VideoPipelineOutput(frames=frames) if call.settings.return_dict else (frames,)

    def _encode_text(self, settings: GenerationSettings, needs_negative: bool) -> TextEmbeddings:
        """The texts of a call, one entry per prompt."""
        return self.encode_prompt(
            settings.prompt, settings.negative_prompt, needs_negative, 1,
            settings.prompt_embeds, settings.prompt_attention_mask,
            settings.negative_prompt_embeds, settings.negative_prompt_attention_mask, settings.max_sequence_length,
        )  # fmt: skip

    def sample(
        self, one: Pass, steps: CallSteps, text: TextEmbeddings, known_latents: Sequence[KnownLatents] = ()
    ) -> tuple[Tensor, TextEmbeddings]:
        """Denoise one pass.

        Args:
            one: its settings, what is known and what it starts from.
            steps: counts those of the call.
            text: embeddings, one entry per clip.
            known_latents: known in addition to what the pass is given.
        Returns:
            Normalised latents [B, C, f, h, w], and the embeddings as a callback left them.
        """
        settings, device = one.settings, self._execution_device
        self._settings, self._guidance = settings, one.guidance
        noise, known = self.prepare_latents(settings, one.shape, one.given, device, known_latents)
        set_schedule(self.scheduler, settings, noise.shape[1], self.convention, device)
        start = one.start(self, noise, known)
        sigmas = (self.scheduler.timesteps / self.scheduler.config.num_train_timesteps).tolist()
        caching = cached_steps(self.transformer, settings.step_cache, one.guidance, sigmas, self.magnitudes)
        with sampling(self.scheduler, settings.stochastic_sampling), caching:
            tokens, text = self._denoise(steps, start, known, text, one.guidance, settings)
        return unpack(tokens, one.shape, self.patch_size), text

    def _denoise(
        self,
        steps: CallSteps,
        start: Tensor,
        known: ConditionSet,
        text: TextEmbeddings,
        guidance: Guidance,
        settings: GenerationSettings,
    ) -> tuple[Tensor, TextEmbeddings]:
        """The denoising loop: starting tokens [B, K + N, C] to latent tokens [B, N, C]."""
        timesteps, tokens = self.scheduler.timesteps, start
        strength = None if known.is_empty else known.strength
        expected, rows = loop_timesteps(self.scheduler, strength), start.shape[0] * (1 + guidance.needs_negative)
        fast = denoising(self.transformer, expected, rows, start.shape[1], closed=settings.callback_on_step_end is None)
        with fast:
            steps.emit()
            for index, timestep in enumerate(timesteps):
                if self.interrupt:
                    continue
                self._current_timestep = timestep
                sigma = timestep / self.scheduler.config.num_train_timesteps
                if strength is not None and settings.image_cond_noise_scale > 0:
                    fresh = draw(tuple(tokens.shape), settings.generator, tokens.device)
                    tokens = renoise_hard(tokens, start, fresh, settings.image_cond_noise_scale, sigma, strength)
                step = StepState(index, len(timesteps), sigma, tokens)
                predictions = self.predict(guidance.branches(step), step, known, text, settings)
                velocity = guidance.combine(predictions, step)
                steps.preview(tokens, velocity, sigma, known, settings)
                tokens = advance(self.scheduler, velocity, timestep, tokens, strength, settings.generator)
                self._check_finite(tokens, step)
                tokens, text = steps.end_step(timestep, tokens, text, settings)
        self._current_timestep = None
        return known.video_tokens(tokens), text

    def predict(
        self,
        branches: Sequence[Branch],
        step: StepState,
        known: ConditionSet,
        text: TextEmbeddings,
        settings: GenerationSettings,
    ) -> dict[str, Tensor]:
        """Run the transformer for each branch; branches that can share a forward run as one batch, or one by one."""
        predictions: dict[str, Tensor] = {}
        timesteps = step.sigma.expand(step.latents.shape[0])
        if not known.is_empty:
            timesteps = token_sigmas(step.sigma, known.strength)
        timesteps = timesteps * self.scheduler.config.num_train_timesteps
        parallel = self.branch_parallel
        remaining = list(branches) if parallel is None else parallel.mine(branches)
        while remaining:
            group = [branch for branch in remaining if branch.model_kwargs == remaining[0].model_kwargs]
            if settings.guidance_batching == "separate":
                group = group[:1]
            remaining = [branch for branch in remaining if branch not in group]
            skips = tuple(branch.skip_layers for branch in group)
            embeds, masks = text.batch([branch.negative for branch in group], self.transformer.dtype)
            with self.transformer.cache_context("_".join(branch.name for branch in group)):
                velocity = self.transformer(
                    hidden_states=torch.cat([step.latents.to(self.transformer.dtype)] * len(group)),
                    encoder_hidden_states=embeds,
                    timestep=torch.cat([timesteps] * len(group)),
                    encoder_attention_mask=masks,
                    video_coords=known.coordinates[:1],
                    attention_kwargs=settings.attention_kwargs,
                    return_dict=False,
                    **({"skip_layers": skips} if any(skips) else {}),
                    **group[0].model_kwargs,
                )[0]
            names = [branch.name for branch in group]
            predictions.update(zip(names, velocity.float().chunk(len(group)), strict=True))
        if parallel is not None:
            return parallel.gather(branches, predictions, step.latents.float().contiguous())
        return predictions

    def _check_finite(self, tokens: Tensor, step: StepState) -> None:
        if not bool(torch.isfinite(tokens).all()):
            raise NonFiniteError(
                f"Step {step.index + 1} of {step.num_steps} (sigma {float(step.sigma):.4f}) gave NaN or infinity with "
                f"the transformer in {self.transformer.dtype}: check the weights, or load with a wider torch_dtype "
                "(torch.bfloat16 or torch.float32)."
            )
