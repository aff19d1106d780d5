"""The base of all pipelines: check, encode, denoise, decode. Here is the only denoising loop.

A task is a choice of known tokens; the loop knows none by name. Its strategies (guidance, schedule, numerical
conventions) are handed to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.video_processor import VideoProcessor
from torch import Tensor

from vgen.diffusion.conditions import ConditionSet, KnownLatents, arrange, token_sigmas
from vgen.diffusion.guidance import Branch, ClassifierFreeGuidance, Guidance, StepState
from vgen.diffusion.samplers import advance, renoise_hard
from vgen.diffusion.tokens import pack, unpack
from vgen.engine.lossy.magnitudes import Magnitudes
from vgen.engine.lossy.step_cache import cached_steps
from vgen.engine.processes.parallel import BranchParallel
from vgen.engine.session import Placement, denoising, inference_session
from vgen.errors import NonFiniteError, RequestError
from vgen.models import CausalVideoVAE, VideoDiT
from vgen.pipelines.call.checks import check_call, check_start
from vgen.pipelines.call.conventions import Convention, convention_named
from vgen.pipelines.call.progress import CallSteps, steps_counted
from vgen.pipelines.call.schedule_and_guidance import guidance_of, largest_scale, loop_timesteps, sampling, set_schedule
from vgen.pipelines.call.settings import GenerationSettings
from vgen.pipelines.call.untrained import warn_untrained
from vgen.pipelines.coding.decode import decode_latents, decode_to_bytes, paste_known, to_output
from vgen.pipelines.coding.encode import draw, encode_given, prepare_noise_and_known
from vgen.pipelines.coding.given_pixels import GivenPixels, VideoCondition, read_conditions
from vgen.pipelines.coding.reencode import renew_known
from vgen.pipelines.loading.load import PipelineLoading
from vgen.pipelines.loading.lora import PipelineLora
from vgen.pipelines.output import VideoPipelineOutput
from vgen.pipelines.passes.draft import make_draft, steps_of
from vgen.pipelines.text.cache import DeferredText
from vgen.pipelines.text.encoder import PreTrainedTokenizerBase, T5EncoderModel, TextEmbeddings
from vgen.pipelines.text.prompts import PipelinePrompts
from vgen.progress import Observer
from vgen.types import LatentShape, VideoShape

Conditions = Sequence[VideoCondition] | Sequence[Sequence[VideoCondition]]


class BasePipeline(PipelineLoading, PipelinePrompts, PipelineLora):
    """Components, and the way from a prompt and known pixels to frames.

    Args:
        scheduler: does the stepping.
        vae: pixels <-> latents.
        text_encoder: prompts to embeddings.
        tokenizer: of the text encoder.
        transformer: predicts velocities.
        convention: numerical conventions of the model, see vgen.pipelines.call.conventions.
        defaults: the model's own values for what a caller leaves out (height, width, num_frames, frame_rate,
            num_inference_steps, guidance_scale, negative_prompt ...); saved in model_index.json.
        trained: what the model states about its training, see vgen.request.trained; saved in model_index.json.
        deferred_text: encodes prompts where text encoder and tokenizer are None.
    """

    scheduler: FlowMatchEulerDiscreteScheduler
    vae: CausalVideoVAE
    transformer: VideoDiT
    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _optional_components: ClassVar[list[str]] = []
    _callback_tensor_inputs: ClassVar[list[str]] = ["latents", "prompt_embeds", "negative_prompt_embeds"]
    branch_parallel: BranchParallel | None = None
    """Where given, the branches of a guidance are spread over several processes."""
    magnitudes: Magnitudes | None = None
    """Of the model, for the step cache magcache; see `vgen.engine.lossy.step_cache.measure_magnitudes`."""
    placement: Placement | None = None
    """Where given, not all models lie on the device, see `vgen.pipelines.loading.placement.place_models`."""
    observer: Observer | None = None
    """Where given, it is told what a call is doing; see `vgen.progress`."""
    call_steps: CallSteps | None = None
    """Of the current call, None outside one."""
    num_call_steps: int = 0
    """See `num_timesteps`."""
    _conditions_anywhere: ClassVar[bool] = False
    """Whether the task takes conditions at any frame; picks the convention of such tasks."""

    def __init__(
        self,
        scheduler: FlowMatchEulerDiscreteScheduler,
        vae: CausalVideoVAE,
        text_encoder: T5EncoderModel,
        tokenizer: PreTrainedTokenizerBase,
        transformer: VideoDiT,
        convention: str = "vgen",
        defaults: dict[str, Any] | None = None,
        trained: dict[str, Any] | None = None,
        deferred_text: DeferredText | None = None,
    ) -> None:
        super().__init__()
        convention_named(convention)
        self.deferred_text = deferred_text
        self.register_modules(
            scheduler=scheduler, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, transformer=transformer
        )
        self.register_to_config(convention=convention, defaults=dict(defaults or {}), trained=trained)
        self.video_processor = VideoProcessor(vae_scale_factor=vae.strides.height)
        self._settings: GenerationSettings | None = None
        self._guidance: Guidance = ClassifierFreeGuidance()
        self._interrupt = False
        self._current_timestep: Tensor | None = None

    @property
    def convention(self) -> Convention:
        """The conventions of this task with this model."""
        convention = self.model_convention
        return self._stated(convention.conditions_name) if self._conditions_anywhere else convention

    @property
    def _execution_device(self) -> torch.device:
        """Where a call works; diffusers' own where the models lie there."""
        return super()._execution_device if self.placement is None else self.placement.device

    @property
    def patch_size(self) -> int:
        """Latents per token along rows and columns."""
        return self.transformer.config.patch_size

    @property
    def guidance_scale(self) -> float:
        """Guidance scale of the current or last call; of a list the largest."""
        return largest_scale(self._settings) if self._settings else 1.0

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the current or last call uses the negative prompt."""
        return self._guidance.needs_negative

    @property
    def num_timesteps(self) -> int:
        """Steps of the current or last call, those of a draft and of both of two passes included."""
        return self.num_call_steps

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
        return GenerationSettings.fill(
            given, planned, self.lora_defaults(), self.config.defaults, of_scheduler, self.convention.defaults
        )

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
        video_shape = VideoShape(settings.num_frames, settings.height, settings.width)
        given = read_conditions(
            conditions, video_shape, self.vae.strides, settings.num_prompts, self.convention.prefix_latent_frames
        )
        return shape, given

    def prepare_latents(
        self,
        settings: GenerationSettings,
        shape: LatentShape,
        given: Sequence[GivenPixels],
        device: torch.device,
        known_latents: Sequence[KnownLatents] = (),
    ) -> tuple[Tensor, ConditionSet]:
        """Draw the noise, encode what is given, and lay it out as tokens, beside what is known as latents already.

        Returns:
            Noise tokens [B, N, C], and the known tokens.
        """
        noise, known = prepare_noise_and_known(
            self.vae, given, settings, shape, self.patch_size, self.convention, device
        )
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

    def noise_clip(
        self, noise: Tensor, known: ConditionSet, clip: GivenPixels | Tensor | None, settings: GenerationSettings
    ) -> Tensor:
        """The tokens to start from: noise, or a clip noised to where the schedule starts; known tokens mixed in.

        Args:
            noise: [B, N, C].
            known: the condition set.
            clip: its content starts the video, as pixels or as normalised latents [B, C, f, h, w]; or None.
            settings: of the call; the scheduler has its sigmas.
        Returns:
            [B, K + N, C].
        """
        sigma = self.scheduler.timesteps[0].to(noise.device) / self.scheduler.config.num_train_timesteps
        if clip is None or sigma >= 1:
            return known.start(noise)
        if isinstance(clip, GivenPixels):
            clip = encode_given(self.vae, clip, settings, self.convention, noise.device).latents
        return known.start(noise, pack(clip.to(noise), self.patch_size).expand(noise.shape), sigma)

    @torch.no_grad()
    def _generate(
        self,
        given_settings: Mapping[str, Any],
        conditions: Conditions = (),
        clip: GivenPixels | Tensor | None = None,
        interrupted: bool = False,
    ) -> Any:
        """A call of any task: settings, conditions and perhaps a clip to start from in, clips out."""
        with inference_session(self):
            return self._run(given_settings, conditions, clip, interrupted)

    def _run(
        self,
        given_settings: Mapping[str, Any],
        conditions: Conditions,
        clip: GivenPixels | Tensor | None,
        interrupted: bool,
    ) -> Any:
        two_pass = given_settings.get("two_pass")
        if two_pass is not None:
            if not hasattr(two_pass, "run"):
                raise RequestError(f"two_pass is a {type(two_pass).__name__}: give TwoPass(upsampler, preset).")
            once = {name: value for name, value in given_settings.items() if name != "two_pass"}
            return two_pass.run(self, once, conditions, clip)
        settings = self.fill_settings(given_settings)
        if isinstance(settings.callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            given_settings = {
                **given_settings, "callback_on_step_end_tensor_inputs": settings.callback_on_step_end.tensor_inputs
            }  # fmt: skip
            settings = self.fill_settings(given_settings)
        guidance = guidance_of(settings)
        shape, given = self.check_inputs(settings, conditions)
        check_start(settings, clip is not None)
        parts = steps_of(settings, given, clip is not None)
        for count in parts:
            guidance.check(count, len(self.transformer.transformer_blocks))
        warn_untrained(self, settings, given, clip)
        self._settings, self._guidance, self._interrupt = settings, guidance, interrupted
        with steps_counted(self, sum(parts)) as steps:
            steps.tell("encoding")
            text = self.encode_prompt(
                settings.prompt, settings.negative_prompt, guidance.needs_negative, settings.num_videos_per_prompt,
                settings.prompt_embeds, settings.prompt_attention_mask,
                settings.negative_prompt_embeds, settings.negative_prompt_attention_mask,
                settings.max_sequence_length, self._execution_device,
            )  # fmt: skip
            latents, first = None, []
            if len(parts) > 1:
                latents, text = make_draft(self, steps, settings, shape, text, guidance)
                first = [KnownLatents(latents[:, :, :1])]
            if latents is None or not self.interrupt:
                latents, text = self._sample(steps, settings, shape, given, first, clip, text, guidance)
            if settings.output_type != "latent":
                steps.tell("decoding")
        latents = renew_known(self.vae, latents, given, settings, self.convention, self.transformer.dtype)
        frames: Any
        if settings.output_type == "latent":
            frames = latents
        elif settings.output_type == "uint8":
            frames = decode_to_bytes(self.vae, latents, settings, self.convention, self.transformer.dtype, given)
        else:
            video = decode_latents(self.vae, latents, settings, self.convention, self.transformer.dtype)
            video = paste_known(video, given, settings.keep_known_pixels, settings.num_videos_per_prompt)
            frames = to_output(video, settings.output_type, self.video_processor)
        self.maybe_free_model_hooks()
        return VideoPipelineOutput(frames=frames) if settings.return_dict else (frames,)

    def _sample(
        self,
        steps: CallSteps,
        settings: GenerationSettings,
        shape: LatentShape,
        given: Sequence[GivenPixels],
        known_latents: Sequence[KnownLatents],
        clip: GivenPixels | Tensor | None,
        text: TextEmbeddings,
        guidance: Guidance,
    ) -> tuple[Tensor, TextEmbeddings]:
        """From noise, or a clip, and what is known to normalised latents [B, C, f, h, w]; and the text at the end."""
        device = self._execution_device
        noise, known = self.prepare_latents(settings, shape, given, device, known_latents)
        set_schedule(self.scheduler, settings, noise.shape[1], self.convention, device)
        start = self.noise_clip(noise, known, clip, settings)
        sigmas = (self.scheduler.timesteps / self.scheduler.config.num_train_timesteps).tolist()
        caching = cached_steps(self.transformer, settings.step_cache, guidance, sigmas, self.magnitudes)
        with sampling(self.scheduler, settings.stochastic_sampling), caching:
            tokens, text = self._denoise(steps, start, known, text, guidance, settings)
        return unpack(tokens, shape, self.patch_size), text

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
            steps.tell("denoising")
            for index, timestep in enumerate(timesteps):
                if self.interrupt:
                    continue
                self._current_timestep = timestep
                sigma = timestep / self.scheduler.config.num_train_timesteps
                if strength is not None and settings.image_cond_noise_scale > 0:
                    fresh = draw(tuple(tokens.shape), settings.generator, tokens.device)
                    tokens = renoise_hard(tokens, start, fresh, settings.image_cond_noise_scale, sigma, strength)
                step = StepState(index, len(timesteps), sigma, tokens)
                predictions = self._predict(guidance.branches(step), step, known, text, settings)
                velocity = guidance.combine(predictions, step)
                tokens = advance(self.scheduler, velocity, timestep, tokens, strength, settings.generator)
                self._check_finite(tokens, step)
                tokens, text = steps.end_step(timestep, tokens, text, settings)
        self._current_timestep = None
        return known.video_tokens(tokens), text

    def _predict(
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
