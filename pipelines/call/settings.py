"""The arguments that every pipeline takes, and where those left out come from."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vgen.diffusion.guidance import Guidance
from vgen.errors import RequestError
from vgen.request.lossy import StepCache
from vgen.request.resolve import settle

if TYPE_CHECKING:
    from vgen.pipelines.passes.two_pass import TwoPass

Generators = torch.Generator | list[torch.Generator] | None


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """One call, with everything filled in. Fields without a default here come from the model where left out.

    Attributes:
        height, width: pixels.
        num_frames: pixel frames.
        frame_rate: frames per second of the result; the model sees it.
        num_inference_steps: denoising steps.
        guidance_scale: classifier-free guidance; 1 and below is off. Like every number of a guidance here one for all
            steps, or a list with one a step (or one for each of `guidance_sigmas`).
        guidance_rescale: in [0, 1], see vgen.diffusion.guidance.
        max_sequence_length: text tokens.
        decode_timestep: of a timestep-conditioned decoder, in [0, 1]; one, or one a prompt.
        image_cond_noise_scale: noise put on hard-known tokens at every step.
        input_crf: H.264 rate factor that given frames are softened with before they are encoded, 0 to 51; 0 leaves
            them as they are. Pictures sharper than video tend to make still clips.
        prompt: one, or a list; "" is allowed.
        negative_prompt: what to keep away from; one for all, or one a prompt.
        num_videos_per_prompt: clips for each prompt.
        generator: one draws for the whole batch; a list gives each clip what it would get alone.
        latents: the noise to start from, [B, C, f, h, w] or tokens [B, N, C].
        prompt_embeds, prompt_attention_mask, negative_prompt_embeds, negative_prompt_attention_mask: in place of text;
            [P, L, D] and [P, L], True = keep.
        decode_noise_scale: noise mixed into the latents of a timestep-conditioned decoder, None: decode_timestep.
        keep_known_pixels: True pastes pixels given with strength 1 back after decoding; None only those of conditions
            with a mask; False none.
        known_passes: how often, after sampling, the cells along the border of a mask are encoded again beside what was
            made, from the second time with what coding lost of known pixels added (see vgen.pipelines.coding.reencode);
            each takes a decoding and an encoding. Without a mask there is none.
        sigmas: the schedule by hand, used as it is: descending from at most 1, one a step, the final 0 left out or not.
        timesteps: the same in thousandths.
        draft_steps: where nothing is given, a draft of so many steps is made first and its first frame given to the
            clip, see vgen.pipelines.passes.draft; 0: no draft. Slower by as many steps, for motions that words hardly
            fix.
        denoise_strength: share of the schedule that is run, its end, in (0, 1]; below 1 it needs a clip to start from.
        stochastic_sampling: whether each step goes to the predicted clean latents and back up with fresh noise; None:
            as the scheduler is configured.
        cfg_star: classifier-free guidance scales the unconditional velocity first (CFG-star).
        stg_scale: spatiotemporal guidance; 0 is off.
        stg_mode: what its perturbed branch leaves out, see vgen.types.SkipLayers.
        stg_blocks: of which transformer blocks, from 0; or lists of them, as for guidance_scale.
        guidance_sigmas: where given, the lists above hold one entry for each of these descending sigmas instead of one
            a step, see vgen.diffusion.guidance.BySigma.
        preset: settings by name that go before the model's defaults: "original" is the guidance of the model's makers,
            see vgen.hub.catalog.
        guidance: a strategy in place of guidance_scale, guidance_rescale, cfg_star and everything with stg.
        guidance_batching: "batched" runs the branches of a step as one batch where they can share it; "separate" one
            after another, with less memory and the same result.
        tone_map_compression_ratio: how far large values of the latents are compressed before decoding, in [0, 1]; see
            vgen.diffusion.latent_statistics.tone_map.
        two_pass: a first pass at a smaller size, and a second that refines it enlarged; see
        vgen.pipelines.passes.two_pass. vae_memory: memory that coding may take, in bytes or as "4GB"; a clip is coded
            in pieces where it needs more, exactly as long as pieces in time suffice. "auto": most of what is free;
            None: as the VAE is set up.
        guidance_interval: guidance only at the steps whose sigma is from the first to the second; None at all. Lossy.
        step_cache: leaves out what hardly changes, see vgen.request.lossy.StepCache; as text, "first-block:0.05".
        Lossy. attention_kwargs: handed to the transformer (for instance {"scale": 0.8} for LoRA).
        output_type: "pil", "np", "pt", "uint8" or "latent", see vgen.pipelines.base.VideoPipelineOutput.
        return_dict: False returns a tuple.
        callback_on_step_end: called as (pipeline, step, timestep, {name: tensor}); tensors it returns are used. The
            step counts from 0 over the whole call: a draft first, then the clip; of two passes the first, then the
            second. `pipeline.num_timesteps` is their number. "latents" are tokens, which begin with those of given
            pixels: of a draft there are fewer than of its clip.
        callback_on_step_end_tensor_inputs: which tensors it gets.
    """

    height: int
    width: int
    num_frames: int
    frame_rate: float
    num_inference_steps: int
    guidance_scale: float | list[float]
    guidance_rescale: float | list[float]
    max_sequence_length: int
    decode_timestep: float | list[float]
    image_cond_noise_scale: float
    input_crf: int
    prompt: str | list[str] | None = None
    negative_prompt: str | list[str] | None = None
    num_videos_per_prompt: int = 1
    generator: Generators = None
    latents: Tensor | None = None
    prompt_embeds: Tensor | None = None
    prompt_attention_mask: Tensor | None = None
    negative_prompt_embeds: Tensor | None = None
    negative_prompt_attention_mask: Tensor | None = None
    decode_noise_scale: float | list[float] | None = None
    keep_known_pixels: bool | None = None
    known_passes: int = 1
    sigmas: Sequence[float] | None = None
    timesteps: Sequence[float] | None = None
    draft_steps: int = 0
    denoise_strength: float = 1.0
    stochastic_sampling: bool | None = None
    cfg_star: bool = False
    stg_scale: float | list[float] = 0.0
    stg_mode: str = "attention_values"
    stg_blocks: list[int] | list[list[int]] | None = None
    guidance_sigmas: list[float] | None = None
    preset: str | None = None
    guidance: Guidance | None = None
    guidance_batching: str = "batched"
    tone_map_compression_ratio: float = 0.0
    two_pass: TwoPass | None = None
    vae_memory: int | str | None = None
    guidance_interval: tuple[float, float] | None = None
    step_cache: StepCache | str | None = None
    attention_kwargs: dict[str, Any] | None = None
    output_type: str = "pil"
    return_dict: bool = True
    callback_on_step_end: Callable[..., Mapping[str, Any]] | None = None
    callback_on_step_end_tensor_inputs: tuple[str, ...] | list[str] = ("latents",)

    @classmethod
    def fill(cls, given: Mapping[str, Any], *defaults: Mapping[str, Any]) -> GenerationSettings:
        """Fill in what the caller left out (or gave as None).

        Args:
            given: the caller's arguments.
            *defaults: looked up in this order.
        Raises:
            TypeError: an argument that does not exist; names the nearest one.
            RequestError: a size that neither the caller nor any default gives, a preset that the model does not have,
                or steps or a guidance that it cannot do.
        """
        known = {field.name: field for field in fields(cls)}
        for name in given:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                raise TypeError(f"unexpected argument {name!r}" + (f": did you mean {near[0]!r}?" if near else "."))
        values, left_out = settle(given, *defaults)
        for name, field in known.items():
            if name in left_out:
                values.setdefault(name, left_out[name])
            if name not in values and field.default is MISSING:
                raise RequestError(f"{name} is not given, and the model has no default for it: pass {name}=.")
        return cls(**values)

    @property
    def num_prompts(self) -> int:
        """P, the number of prompts."""
        if self.prompt_embeds is not None:
            return self.prompt_embeds.shape[0]
        return len(self.prompt) if isinstance(self.prompt, list) else 1

    @property
    def batch_size(self) -> int:
        """B, the number of clips: prompts times clips for each."""
        return self.num_prompts * self.num_videos_per_prompt


def with_settings(call: Callable[..., Any]) -> Callable[..., Any]:
    """Show the settings in the signature of a pipeline's `__call__`, whose `**settings` takes them."""
    signature = inspect.signature(call)
    own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    shared = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None if field.default is MISSING else field.default,
            annotation=f"{field.type} | None" if field.default is MISSING else field.type,
        )
        for field in fields(GenerationSettings)
        if field.name not in signature.parameters
    ]
    call.__signature__ = signature.replace(parameters=[*own, *shared])  # type: ignore[attr-defined]
    return call
