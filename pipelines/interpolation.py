"""Interpolation: the first and the last frame are known."""

from __future__ import annotations

from typing import Any

from vgen.errors import RequestError
from vgen.pipelines.base import BasePipeline, VideoPipelineOutput
from vgen.pipelines.call.settings import count_prompts, with_settings
from vgen.pipelines.coding.given_pixels import per_prompt
from vgen.types import FitMode


class InterpolationPipeline(BasePipeline):
    """Generate clips that lead from one picture to another."""

    _conditions_anywhere = True

    @with_settings
    def __call__(
        self,
        first: Any = None,
        last: Any = None,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        *,
        fit: FitMode | None = None,
        **settings: Any,
    ) -> VideoPipelineOutput | tuple[Any, ...]:
        """Generate.

        Args:
            first: the first frame, see VideoCondition.frames; or as many as prompts (a list, or a batch), one each.
            last: the last frame, likewise.
            prompt: what happens between them; None is "".
            negative_prompt: what to keep away from.
            fit: "cover", "contain" or "stretch" brings a picture of another size to the clip's, see VideoCondition;
                None refuses it.
        """
        if first is None or last is None:
            raise RequestError(f"{'first' if first is None else 'last'} is not given: pass both pictures.")
        if prompt is None and settings.get("prompt_embeds") is None:
            prompt = ""
        given = {"prompt": prompt, "negative_prompt": negative_prompt, **settings}
        num_prompts = count_prompts(prompt, settings.get("prompt_embeds"))
        firsts, lasts = (
            per_prompt(images, num_prompts, name, frame_index=index, fit=fit)
            for images, index, name in ((first, 0, "first"), (last, -1, "last"))
        )
        if len(firsts) == len(lasts) == 1:
            return self._generate(given, [firsts[0], lasts[0]])
        firsts, lasts = (ends * num_prompts if len(ends) == 1 else ends for ends in (firsts, lasts))
        return self._generate(given, [list(pair) for pair in zip(firsts, lasts, strict=True)])
