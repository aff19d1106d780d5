"""The settings of a pipeline's call: those of vgen.request.settings, and what only Python can hand over."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

import torch
from pydantic import ConfigDict, Field, SkipValidation, ValidationError, WithJsonSchema
from torch import Tensor

from vgen.diffusion.guidance import Guidance
from vgen.errors import RequestError
from vgen.request.fields import NOT_BOOL, PerPrompt, Text
from vgen.request.knobs import OF_MODEL, Open, knob, plain_type
from vgen.request.messages import unknown, worded
from vgen.request.resolve import settle
from vgen.request.settings import Settings
from vgen.types import VideoShape

Generators = torch.Generator | list[torch.Generator] | None
T = TypeVar("T")
Unchecked = Annotated[T, SkipValidation, WithJsonSchema({})]
"""What pydantic takes as it is: tensors are checked with the shapes of a call, see `vgen.pipelines.call.checks`."""


class GenerationSettings(Settings):
    """One call, with everything filled in; what is not declared here is in `vgen.request.settings.Settings`."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    prompt: PerPrompt[Text] | None = knob('What the clip shows; one, or a list; "" is allowed.')
    negative_prompt: Open[PerPrompt[Text]] = knob(  # type: ignore[assignment]  # a request has one prompt
        "What to keep away from; one for all, or one per prompt.", source="the model's", settled=True, last=""
    )
    num_videos_per_prompt: Annotated[int, Field(ge=1), NOT_BOOL] = knob("Clips for each prompt.", default=1)
    generator: Unchecked[Generators] = knob(
        "Draws the noise: one for the whole batch; a list gives each clip what it would get alone."
    )
    latents: Unchecked[Tensor | None] = knob("The noise to start from, [B, C, f, h, w] or tokens [B, N, C].")
    prompt_embeds: Unchecked[Tensor | None] = knob("In place of `prompt`, [P, L, D].")
    prompt_attention_mask: Unchecked[Tensor | None] = knob("Of prompt_embeds, [P, L], True = keep.")
    negative_prompt_embeds: Unchecked[Tensor | None] = knob("In place of `negative_prompt`, [P, L, D].")
    negative_prompt_attention_mask: Unchecked[Tensor | None] = knob("Of negative_prompt_embeds, [P, L], True = keep.")
    timesteps: Unchecked[Any] = knob("`sigmas` in thousandths; give one of the two.")
    guidance: Unchecked[Guidance | None] = knob(
        "A strategy in place of guidance_scale, guidance_rescale, cfg_star and everything with stg."
    )
    two_pass: Any = knob(
        "A first pass at a smaller size, and a second that refines it enlarged, see vgen.pipelines.passes.two_pass."
    )
    attention_kwargs: dict[str, Any] | None = knob('Handed to the transformer, for instance {"scale": 0.8} for LoRA.')
    output_type: Literal["pil", "np", "pt", "uint8", "latent"] = knob(
        '"pil", "np", "pt", "uint8" or "latent", see vgen.pipelines.VideoPipelineOutput.', default="pil"
    )
    return_dict: bool = knob("False returns a tuple.", default=True)
    callback_on_step_end: Unchecked[Callable[..., Mapping[str, Any]] | None] = knob(
        "Called as (pipeline, step, timestep, {name: tensor}); tensors it returns are used. The step counts from 0 "
        "over the whole call: a draft first, then the clip; of two passes the first, then the second; "
        '`pipeline.num_timesteps` is their number. "latents" are tokens, which begin with those of given pixels: of a '
        "draft there are fewer than of its clip."
    )
    callback_on_step_end_tensor_inputs: tuple[str, ...] = knob("Which tensors it gets.", default=("latents",))

    @classmethod
    def fill(cls, given: Mapping[str, Any], *defaults: Mapping[str, Any]) -> Self:
        """Fill in what the caller left out (or gave as None), and check it.

        Args:
            given: the caller's arguments.
            *defaults: looked up in this order.
        Raises:
            TypeError: an argument that does not exist; names the nearest one.
            RequestError: a value out of its range, a size that neither the caller nor any default gives, a preset that
                the model does not have, or steps or a guidance that it cannot do.
        """
        for name in given:
            if name not in cls.model_fields:
                raise TypeError(unknown(name, cls.model_fields, "an argument"))
        values, known = settle(given, *defaults)
        for name, about in cls.knobs().items():
            value = values.get(name, known.get(name, about.last) if name in Settings.model_fields else None)
            if value is not None:
                values[name] = value
            elif about.settled:
                raise RequestError(f"{name} is not given, and the model has no default for it: pass {name}=.")
        try:
            return cls(**values)
        except ValidationError as error:
            raise RequestError(worded(error, cls, "an argument")) from None

    def replace(self, **changes: Any) -> Self:
        """The same with other values, which are not checked."""
        return self.model_copy(update=changes)

    @property
    def num_prompts(self) -> int:
        """P, the number of prompts."""
        return count_prompts(self.prompt, self.prompt_embeds)

    @property
    def shape(self) -> VideoShape:
        """Size of the clip."""
        return VideoShape(self.num_frames, self.height, self.width)

    @property
    def batch_size(self) -> int:
        """B, the number of clips: prompts times clips for each."""
        return self.num_prompts * self.num_videos_per_prompt


def count_prompts(prompt: str | list[str] | None, prompt_embeds: Tensor | None = None) -> int:
    """The number of prompts of a call that is not filled in yet."""
    if prompt_embeds is not None:
        return prompt_embeds.shape[0]
    return len(prompt) if isinstance(prompt, list) else 1


_RETURNS = (
    "Returns:",
    "    `.frames`, or a tuple of them.",
    "Raises:",
    "    RequestError: something cannot be done as asked; nothing was computed.",
    "    NonFiniteError: the model gave NaN or infinity.",
)


def with_settings(call: Callable[..., Any]) -> Callable[..., Any]:
    """Show the settings in signature and docstring of a pipeline's `__call__`, whose `**settings` takes them."""
    signature = inspect.signature(call)
    parameters = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    lines = [inspect.cleandoc(call.__doc__ or ""), *_RETURNS, "Settings:"]
    for name, about in GenerationSettings.knobs().items():
        if name in signature.parameters:
            continue
        field = GenerationSettings.model_fields[name]
        default = field.default if field.default is not None or OF_MODEL in about.source else about.last
        kind = plain_type(field.annotation)
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind))
        source = repr(field.default) if field.default is not None else about.source
        text = f"{name}: {field.description}" + (f" Default: {source}." if source != "none" else "")
        lines += textwrap.wrap(text, 112, initial_indent="    ", subsequent_indent="        ")
    call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    call.__doc__ = "\n".join(lines)
    return call
