"""A call in two passes: small and from noise, enlarged in latent space, refined; then brought to the size asked for.

    upsampler = LatentUpsampler.from_single_file("ltxv-spatial-upscaler-0.9.8.safetensors")
    frames = pipe("a cat", two_pass=TwoPass(upsampler, "distilled")).frames

`TwoPass` is a strategy of one call and works with every pipeline here: what is given (pictures, clips, masks) is given
to both passes, each at its size. It follows Lightricks' multi-scale pipeline. What diffusers' three pipelines in a row
(text or conditions, LTXLatentUpsamplePipeline, LTXConditionPipeline) do otherwise, on purpose:

- they match statistics only when told to; here `adain_factor` is 1, as in the original;
- they compress tones before the second pass and in the VAE's own units, where the second pass undoes it; here it is
  done on normalised latents just before decoding;
- they leave the last size to the caller; here the clip is resized to what was asked, and given pixels are pasted then;
- they know no softening of what is given; here it is done once, at the size given, and resized for each pass;
- they encode the prompt twice, and draw from whatever generator each call gets; here one generator (or one a clip)
  draws for both passes in a row, so that a clip of a batch is what it would be alone.

With `adain_factor` and `denoise_strength` as in the three calls, the latents of every stage are theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from vgen.diffusion.latent_statistics import match_statistics
from vgen.diffusion.tokens import token_grid, token_strides
from vgen.errors import RequestError, ShapeError, counted
from vgen.pipelines.call.progress import steps_counted
from vgen.pipelines.call.schedule_and_guidance import guidance_of, set_schedule
from vgen.pipelines.call.settings import GenerationSettings
from vgen.pipelines.coding.decode import paste_known, to_output
from vgen.pipelines.coding.given_pixels import GivenPixels
from vgen.pipelines.coding.resize import fit_conditions, resize_clip, resize_conditions, soften_conditions
from vgen.pipelines.output import VideoPipelineOutput
from vgen.pipelines.passes.draft import steps_of
from vgen.request.steps import skipped_steps
from vgen.request.two_pass_presets import PLAIN, SCHEDULE, SKIPS, TwoPassPreset, pass_shapes, preset_named
from vgen.types import VideoShape

if TYPE_CHECKING:
    from vgen.models.latent_upsampler import LatentUpsampler
    from vgen.pipelines.base import BasePipeline, Conditions

_FIRST_ONLY = ("latents", "denoise_strength")
"""Settings of the call that say how the first pass starts, and nothing about the second."""


@dataclass(frozen=True)
class Pass:
    """One pass, checked.

    Attributes:
        given: the arguments of its call.
        settings: the same, filled in.
        conditions: what is known, at its size.
    """

    given: dict[str, Any]
    settings: GenerationSettings
    conditions: Conditions


class TwoPass:
    """Two passes in place of one; hand it to a call as `two_pass`.

    Args:
        upsampler: fits the model's VAE.
        preset: a name, see configs/sample/two_pass.yaml, or a preset of your own.
        first_pass: settings of the first pass on top of the preset's. Beside those of a call: skip_initial_steps and
            skip_final_steps, steps of the schedule that are left out.
        second_pass: the same for the second.
        downscale_factor: None: the preset's.
        adain_factor: None: the preset's.
    """

    def __init__(
        self,
        upsampler: LatentUpsampler,
        preset: str | TwoPassPreset = PLAIN,
        *,
        first_pass: Mapping[str, Any] | None = None,
        second_pass: Mapping[str, Any] | None = None,
        downscale_factor: float | None = None,
        adain_factor: float | None = None,
    ) -> None:
        self.upsampler = upsampler
        base = preset_named(preset) if isinstance(preset, str) else preset
        self.preset = replace(
            base,
            downscale_factor=base.downscale_factor if downscale_factor is None else downscale_factor,
            adain_factor=base.adain_factor if adain_factor is None else adain_factor,
            first_pass=_overlay(base.first_pass, first_pass or {}),
            second_pass=_overlay(base.second_pass, second_pass or {}),
        )

    def run(
        self, pipe: BasePipeline, given: Mapping[str, Any], conditions: Conditions, clip: GivenPixels | None
    ) -> VideoPipelineOutput | tuple[Any, ...]:
        """Run both passes of a call.

        Args:
            pipe: of any task.
            given: the call's settings, without `two_pass`.
            conditions: of the call's size.
            clip: what the first pass starts from, or None.
        Returns:
            What the call returns; with output_type "latent" those of the second pass, at its size.
        Raises:
            RequestError: something cannot be done as asked in one of the passes; nothing was computed.
        """
        asked = pipe.fill_settings({name: value for name, value in given.items() if name not in _FIRST_ONLY})
        # The schedules are those of the passes, which are checked with them.
        _, pixels = pipe.check_inputs(replace(asked, sigmas=(1.0,)), conditions)
        first, second = self.plan(pipe, given, conditions)
        if clip is None and first.settings.denoise_strength < 1:
            raise RequestError(
                f"denoise_strength={first.settings.denoise_strength:g} of the first pass needs a clip to start from: "
                "use VideoToVideoPipeline, or say it in second_pass."
            )
        text = self._encode_prompts(pipe, first, second)
        if clip is not None:
            clip = resize_clip(clip, _shape(first.settings), self.upsampler.scale.temporal)
        counts = [steps_of(first.settings, first.conditions, clip is not None)]
        counts += [steps_of(second.settings, second.conditions, starts_from_clip=True)]
        with steps_counted(pipe, sum(map(sum, counts))):
            latents = pipe._generate({**first.given, **text}, first.conditions, clip).frames
            enlarged = self.enlarge(pipe.vae, latents, pipe._execution_device)
            frames = pipe._generate({**second.given, **text}, second.conditions, enlarged, pipe.interrupt).frames
        if asked.output_type != "latent":
            video = _resize_video(frames, asked.height, asked.width) * 2 - 1
            video = paste_known(video, pixels, asked.keep_known_pixels, asked.num_videos_per_prompt)
            frames = to_output(video, asked.output_type, pipe.video_processor)
        return VideoPipelineOutput(frames=frames) if asked.return_dict else (frames,)

    def plan(self, pipe: BasePipeline, given: Mapping[str, Any], conditions: Conditions) -> tuple[Pass, Pass]:
        """The two passes of a call, checked; computes nothing.

        Raises:
            RequestError: see `run`.
        """
        self.check_upsampler(pipe.vae)
        asked = pipe.fill_settings({name: value for name, value in given.items() if name not in _FIRST_ONLY})
        target, scale = _shape(asked), self.upsampler.scale
        strides = token_strides(pipe.vae.strides, pipe.patch_size)
        shapes = pass_shapes(target, strides, scale, self.preset.downscale_factor)
        conditions = soften_conditions(fit_conditions(conditions, target), asked.input_crf)
        output_type = "latent" if asked.output_type == "latent" else "pt"
        passes: list[Pass] = []
        for own, shape, every, last in (
            (self.preset.first_pass, shapes.first, scale.temporal, "latent"),
            (self.preset.second_pass, shapes.second, 1, output_type),
        ):
            call = _merge(given, own, second=bool(passes))
            size = {"num_frames": shape.num_frames, "height": shape.height, "width": shape.width}
            call.update(size, frame_rate=asked.frame_rate / every)
            call.update(output_type=last, keep_known_pixels=False, return_dict=True, input_crf=0)
            passes.append(_checked(pipe, call, resize_conditions(conditions, target, shape, every)))
        self._check_second(pipe, passes[1].settings)
        return passes[0], passes[1]

    @torch.no_grad()
    def enlarge(self, vae: Any, latents: Tensor, device: torch.device | None = None) -> Tensor:
        """Enlarge normalised latents, with the statistics of the small ones.

        Args:
            vae: for normalising: the upsampler works on latents as the encoder gives them.
            latents: [B, C, f, h, w], normalised.
            device: where to run the upsampler; it goes back to where it was.
        Returns:
            Normalised, float32, of the upsampler's scale.
        """
        home = self.upsampler.device
        device = device or home
        if device != home:
            self.upsampler.to(device)
        small = vae.denormalize(latents.to(device).float())
        large = self.upsampler(small.to(self.upsampler.dtype)).float()
        if device != home:
            self.upsampler.to(home)
        return vae.normalize(match_statistics(large, small, self.preset.adain_factor))

    def check_upsampler(self, vae: Any) -> None:
        """Refuse an upsampler of another VAE's latents.

        Raises:
            ShapeError: names both numbers of channels.
        """
        channels, own = vae.config.latent_channels, self.upsampler.config.in_channels
        if channels != own:
            raise ShapeError(
                f"The upsampler takes latents of {own} channels and the model's VAE gives {channels}: use the "
                "upsampler that was made for it."
            )

    @staticmethod
    def _check_second(pipe: BasePipeline, settings: GenerationSettings) -> None:
        _set_schedule(pipe, settings)
        sigma = float(pipe.scheduler.sigmas[0])
        if sigma >= 1 - 1e-6:
            raise RequestError(
                "The second pass would start from noise alone (sigma 1) and lose the first: give it a denoise_strength "
                "below 1, skip_initial_steps, or sigmas that start lower; a schedule of one step has no room for it."
            )

    @staticmethod
    def _encode_prompts(pipe: BasePipeline, first: Pass, second: Pass) -> dict[str, Any]:
        """Both passes' embeddings, encoded once, in place of the prompts."""
        settings = first.settings
        text = pipe.encode_prompt(
            settings.prompt,
            settings.negative_prompt,
            any(guidance_of(one.settings).needs_negative for one in (first, second)),
            1,
            settings.prompt_embeds,
            settings.prompt_attention_mask,
            settings.negative_prompt_embeds,
            settings.negative_prompt_attention_mask,
            settings.max_sequence_length,
        )
        return {
            "prompt": None,
            "negative_prompt": None,
            "prompt_embeds": text.prompt_embeds,
            "prompt_attention_mask": text.prompt_attention_mask,
            "negative_prompt_embeds": text.negative_prompt_embeds,
            "negative_prompt_attention_mask": text.negative_prompt_attention_mask,
        }


def _overlay(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Settings over settings: another schedule drops all of the old one's, another strength its skipped steps."""
    dropped: set[str] = set()
    if any(over.get(name) is not None for name in SCHEDULE):
        dropped |= {*SCHEDULE, *SKIPS}
    if any(over.get(name) is not None for name in ("denoise_strength", *SKIPS)):
        dropped |= {"denoise_strength", *SKIPS}
    if over.get("guidance_scale") is not None:
        dropped |= {"guidance"}
    return {name: value for name, value in under.items() if name not in dropped} | dict(over)


def _merge(given: Mapping[str, Any], own: Mapping[str, Any], *, second: bool) -> dict[str, Any]:
    """The call's settings with a pass's own over them."""
    under = {name: value for name, value in given.items() if value is not None}
    dropped: set[str] = set(_FIRST_ONLY) if second else set()
    if any(own.get(name) is not None for name in SCHEDULE):
        dropped |= set(SCHEDULE)
    if own.get("guidance_scale") is not None:
        dropped |= {"guidance"}
    return {name: value for name, value in under.items() if name not in dropped} | dict(own)


def _checked(pipe: BasePipeline, call: dict[str, Any], conditions: Conditions) -> Pass:
    """Turn skipped steps into sigmas, and check the pass as its call will."""
    skips = [call.pop(name, 0) for name in SKIPS]
    settings = pipe.fill_settings(call)
    if any(skips):
        pipe.check_inputs(settings)
        sigmas = _cut(pipe, settings, *skips)
        call = {name: value for name, value in call.items() if name not in SCHEDULE} | {"sigmas": sigmas}
        settings = pipe.fill_settings(call)
    pipe.check_inputs(settings, conditions)
    steps = settings.num_inference_steps - skipped_steps(settings.num_inference_steps, settings.denoise_strength)
    guidance_of(settings).check(steps, len(pipe.transformer.transformer_blocks))
    return Pass(call, settings, conditions)


def _cut(pipe: BasePipeline, settings: GenerationSettings, initial: int, final: int) -> list[float]:
    """The sigmas of a pass without its first and last ones; the rest still ends at 0."""
    _set_schedule(pipe, replace(settings, denoise_strength=1.0))
    sigmas = pipe.scheduler.sigmas[:-1].tolist()
    if not all(isinstance(skip, int) and skip >= 0 for skip in (initial, final)) or initial + final >= len(sigmas):
        raise RequestError(
            f"skip_initial_steps={initial} and skip_final_steps={final} of {counted(len(sigmas), 'step')}: they must "
            f"be whole numbers of 0 or more, and {len(sigmas) - 1} at most together."
        )
    return sigmas[initial : len(sigmas) - final]


def _set_schedule(pipe: BasePipeline, settings: GenerationSettings) -> None:
    grid = token_grid(_shape(settings).latent(pipe.vae.strides), pipe.patch_size)
    set_schedule(pipe.scheduler, settings, grid.num_tokens, pipe.convention, torch.device("cpu"))


def _shape(settings: GenerationSettings) -> VideoShape:
    return VideoShape(settings.num_frames, settings.height, settings.width)


def _resize_video(frames: Tensor, height: int, width: int) -> Tensor:
    """[B, F, 3, h, w] in [0, 1] -> [B, 3, F, height, width], clip by clip."""
    if tuple(frames.shape[-2:]) == (height, width):
        return rearrange(frames, "b f c h w -> b c f h w")
    clips: Sequence[Tensor] = [
        F.interpolate(clip, size=(height, width), mode="bilinear", align_corners=False) for clip in frames
    ]
    return rearrange(torch.stack(list(clips)), "b f c h w -> b c f h w")
