"""Image to video: the first frame is known."""

from __future__ import annotations

from typing import Any

from vgen.errors import RequestError
from vgen.pipelines.base import BasePipeline, VideoPipelineOutput
from vgen.pipelines.call.settings import count_prompts, with_settings
from vgen.pipelines.coding.given_pixels import per_prompt
from vgen.types import FitMode


class ImageToVideoPipeline(BasePipeline):
    """Generate clips that start with a given picture."""

    @with_settings
    def __call__(
        self,
        image: Any = None,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        *,
        fit: FitMode | None = None,
        **settings: Any,
    ) -> VideoPipelineOutput | tuple[Any, ...]:
        """Generate.

        Args:
            image: the first frame, see VideoCondition.frames; or as many as prompts (a list, or a batch), one each.
            prompt: what happens.
            negative_prompt: what to keep away from.
            fit: "cover", "contain" or "stretch" brings a picture of another size to the clip's, see VideoCondition;
                None refuses it.
        """
        if image is None:
            raise RequestError("image is not given: pass the first frame, or use TextToVideoPipeline.")
        given = {"prompt": prompt, "negative_prompt": negative_prompt, **settings}
        first = per_prompt(image, count_prompts(prompt, settings.get("prompt_embeds")), "image", fit=fit)
        return self._generate(given, first if len(first) == 1 else [[entry] for entry in first])
