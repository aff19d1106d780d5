"""A call in two passes: small and from noise, enlarged in latent space, refined; then brought to the size asked for.

    upsampler = LatentUpsampler.from_single_file("ltxv-spatial-upscaler-0.9.8.safetensors")
    frames = pipe("a cat", two_pass=TwoPass(upsampler, "distilled")).frames

`TwoPass` is a strategy of one call and works with every pipeline here: what is given (pictures, clips, masks) is given
to both passes, each at its size. It follows Lightricks' multi-scale pipeline. What diffusers' three pipelines in a row
(text or conditions, LTXLatentUpsamplePipeline, LTXConditionPipeline) do otherwise, on purpose:

- they match statistics only on demand; here `adain_factor` is 1, as in the original;
- they compress tones before the second pass and in the VAE's own units, where the second pass undoes it; here it is
  done on normalised latents just before decoding;
- they leave the last size to the caller; here the clip is resized to what was asked, and given pixels are pasted then;
- they know no softening of what is given; here it is done once, at the size given, and resized for each pass;
- they encode the prompt twice, and draw from whatever generator each call gets; here one generator (or one per clip)
  draws for both passes in a row, so that a clip of a batch is what it would be alone.

With `adain_factor` and `denoise_strength` as in the three calls, the latents of every stage are theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vgen.diffusion.latent_statistics import match_statistics
from vgen.diffusion.tokens import token_grid, token_strides
from vgen.errors import RequestError, ShapeError, counted
from vgen.models.latent_upsampler import LatentUpsampler
from vgen.pipelines.call.progress import CallSteps
from vgen.pipelines.call.schedule_and_guidance import set_schedule
from vgen.pipelines.call.settings import GenerationSettings
from vgen.pipelines.coding.given_pixels import Conditions, GivenPixels
from vgen.pipelines.coding.resize import resize_conditions, resize_given, soften_given
from vgen.pipelines.passes.passes import Call, Pass, Sampler
from vgen.pipelines.passes.plan import plan_pass, with_reencoding
from vgen.pipelines.text.encoder import TextEmbeddings
from vgen.request.two_pass_presets import PLAIN, SCHEDULE, SKIPS, TwoPassPreset, pass_shapes, preset_named
from vgen.types import VideoShape

_FIRST_ONLY = ("latents", "denoise_strength")
"""Settings of the call that say how the first pass starts, and nothing about the second."""


@dataclass(frozen=True, eq=False)
class RefiningPass(Pass):
    """The second pass: starts from the latents of the first, enlarged by `two_pass`."""

    two_pass: TwoPass = field(kw_only=True)

    def run(self, pipe: Sampler, steps: CallSteps, text: TextEmbeddings, before: Tensor | None) -> Tensor:
        """See `Pass.run`."""
        assert before is not None
        clip = self.two_pass.enlarge(pipe.vae, before, pipe._execution_device)
        return pipe.sample(replace(self, clip=clip), steps, text)[0]


class TwoPass:
    """Two passes in place of one; hand it to a call as `two_pass`.

    Args:
        upsampler: fits the model's VAE.
        preset: a name, see configs/sample/two_pass.yaml, or a preset of your own.
        first_pass: settings of the first pass on top of the preset's: those of a call, and skip_initial_steps and
            skip_final_steps, steps of the schedule that are skipped.
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

    def plan(self, pipe: Sampler, given: Mapping[str, Any], conditions: Conditions, clip: GivenPixels | None) -> Call:
        """Both passes of a call, checked; computes nothing.

        Args:
            pipe: of any task.
            given: the call's settings, without `two_pass`.
            conditions: at the size of the call.
            clip: pixels that the first pass starts from, or None.
        Raises:
            RequestError: something cannot be done as asked in one of the passes.
        """
        asked = pipe.fill_settings({name: value for name, value in given.items() if name not in _FIRST_ONLY})
        # The schedules are those of the passes, which are checked with them.
        _, pixels = pipe.check_inputs(asked.replace(sigmas=(1.0,)), conditions)
        self.check_upsampler(pipe.vae)
        target, scale = asked.shape, self.upsampler.scale
        shapes = pass_shapes(
            target, token_strides(pipe.vae.strides, pipe.patch_size), scale, self.preset.downscale_factor
        )
        soft = [soften_given(entry, asked.input_crf) for entry in pixels]
        small = None if clip is None else resize_given(clip, shapes.first, scale.temporal)
        own, rate = _merge(given, self.preset.first_pass, ()), asked.frame_rate / scale.temporal
        first = _plan(pipe, own, shapes.first, rate, soft, small, every=scale.temporal)
        own = _merge(given, self.preset.second_pass, _FIRST_ONLY)
        second = _plan(
            pipe, own, shapes.second, asked.frame_rate, soft, None, kind=partial(RefiningPass, two_pass=self)
        )
        _check_second(pipe, second)
        if clip is None and first.settings.denoise_strength < 1:
            raise RequestError(
                f"denoise_strength={first.settings.denoise_strength:g} of the first pass needs a clip to start from: "
                "use VideoToVideoPipeline, or say it in second_pass."
            )
        return Call([*with_reencoding(first), *with_reencoding(second)], asked, pixels)

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


def _merge(given: Mapping[str, Any], own: Mapping[str, Any], without: Sequence[str]) -> dict[str, Any]:
    """The call's settings, `without` some, with a pass's own over them."""
    dropped = set(without)
    if any(own.get(name) is not None for name in SCHEDULE):
        dropped |= set(SCHEDULE)
    if own.get("guidance_scale") is not None:
        dropped |= {"guidance"}
    return {name: value for name, value in given.items() if value is not None and name not in dropped} | dict(own)


def _plan(
    pipe: Sampler,
    own: dict[str, Any],
    shape: VideoShape,
    frame_rate: float,
    given: Sequence[GivenPixels],
    clip: GivenPixels | None,
    every: int = 1,
    kind: Callable[..., Pass] = Pass,
) -> Pass:
    """A pass of this size with every `every`-th frame of the call, checked."""
    settings = _pass_settings(pipe, own, shape, frame_rate)
    latent_shape, _ = pipe.check_inputs(settings)
    resized = resize_conditions(given, shape, pipe.vae.strides, pipe.convention.prefix_latent_frames, every)
    return plan_pass(pipe, settings, latent_shape, resized, clip, kind)


def _pass_settings(pipe: Sampler, call: dict[str, Any], shape: VideoShape, frame_rate: float) -> GenerationSettings:
    """The settings of a pass of this size; steps that it skips become sigmas."""
    size = {"num_frames": shape.num_frames, "height": shape.height, "width": shape.width}
    call |= {**size, "frame_rate": frame_rate, "input_crf": 0}
    skips = [call.pop(name, 0) for name in SKIPS]
    settings = pipe.fill_settings(call)
    if not any(skips):
        return settings
    pipe.check_inputs(settings)
    sigmas = _cut(pipe, settings, *skips)
    return pipe.fill_settings(
        {name: value for name, value in call.items() if name not in SCHEDULE} | {"sigmas": sigmas}
    )


def _check_second(pipe: Sampler, second: Pass) -> None:
    """Refuse a second pass that would start from noise alone."""
    _set_schedule(pipe, second.settings)
    if float(pipe.scheduler.sigmas[0]) >= 1 - 1e-6:
        raise RequestError(
            "The second pass would start from noise alone (sigma 1) and lose the first: give it a denoise_strength "
            "below 1, skip_initial_steps, or sigmas that start lower; a schedule of one step has no room for it."
        )


def _cut(pipe: Sampler, settings: GenerationSettings, initial: int, final: int) -> list[float]:
    """The sigmas of a pass without its first and last ones; the rest still ends at 0."""
    _set_schedule(pipe, settings.replace(denoise_strength=1.0))
    sigmas = pipe.scheduler.sigmas[:-1].tolist()
    if not all(isinstance(skip, int) and skip >= 0 for skip in (initial, final)) or initial + final >= len(sigmas):
        raise RequestError(
            f"skip_initial_steps={initial} and skip_final_steps={final} of {counted(len(sigmas), 'step')}: they must "
            f"be whole numbers of 0 or more, and {len(sigmas) - 1} at most together."
        )
    return sigmas[initial : len(sigmas) - final]


def _set_schedule(pipe: Sampler, settings: GenerationSettings) -> None:
    tokens = token_grid(settings.shape.latent(pipe.vae.strides), pipe.patch_size).num_tokens
    set_schedule(pipe.scheduler, settings, tokens, pipe.convention, torch.device("cpu"))
