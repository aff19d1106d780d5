"""The steps of a call, counted over its draft and its passes: for the bar, the observer and the caller's callback."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vgen.diffusion.conditions import ConditionSet, token_sigmas
from vgen.diffusion.flow import velocity_to_clean
from vgen.diffusion.tokens import unpack
from vgen.events import Event, Preview, Step
from vgen.pipelines.call.settings import GenerationSettings
from vgen.pipelines.text.encoder import TextEmbeddings


class CallSteps:
    """Counts the steps of one call.

    Args:
        pipeline: whose call it is; its observer is given the events.
        total: steps of the draft and of all passes together.
        bar: diffusers' progress bar.
    """

    def __init__(self, pipeline: Any, total: int, bar: Any) -> None:
        self.pipeline, self.total, self.bar, self.done = pipeline, total, bar, 0

    def emit(self, event: Event | None = None) -> None:
        """Hand an event to the observer; without one: how many steps are done."""
        if self.pipeline.observer is not None:
            self.pipeline.observer(event or Step(self.done, self.total))

    def preview(
        self, tokens: Tensor, velocity: Tensor, sigma: Tensor, known: ConditionSet, settings: GenerationSettings
    ) -> None:
        """Emit the predicted clean clip of a step, if previews are asked for.

        Args:
            tokens: [B, K + N, C], before the step.
            velocity: [B, K + N, C], predicted for them.
            sigma: of the step.
            known: the condition set.
            settings: of the call; its size is the clip's.
        """
        if self.pipeline.observer is None or not self.pipeline.previews:
            return
        sigmas = sigma.expand(len(tokens)) if known.is_empty else token_sigmas(sigma, known.strength)
        clean = known.video_tokens(velocity_to_clean(tokens, velocity, sigmas))
        shape = settings.shape.latent(self.pipeline.vae.strides)
        self.emit(Preview(self.done + 1, self.total, unpack(clean, shape, self.pipeline.patch_size)))

    def end_step(
        self, timestep: Tensor, tokens: Tensor, text: TextEmbeddings, settings: GenerationSettings
    ) -> tuple[Tensor, TextEmbeddings]:
        """Call the caller's callback with the index of a step that is done, take what it gives back, and count.

        Args:
            timestep: of the step.
            tokens: [B, K + N, C], what the step gave.
            text: the embeddings in use.
            settings: the callback, and which tensors it is given.
        Returns:
            Tokens and embeddings for the next step: the very same ones where the callback returns nothing else.
        """
        if settings.callback_on_step_end is not None:
            available = {
                "latents": tokens,
                "prompt_embeds": text.prompt_embeds,
                "negative_prompt_embeds": text.negative_prompt_embeds,
            }
            wanted = {name: available[name] for name in settings.callback_on_step_end_tensor_inputs}
            changed = settings.callback_on_step_end(self.pipeline, self.done, timestep, wanted) or {}
            text = text.updated(changed.get("prompt_embeds"), changed.get("negative_prompt_embeds"))
            tokens = changed.get("latents", tokens)
        self.done += 1
        self.bar.update()
        self.emit()
        return tokens, text
