"""Text to video: nothing is known."""

from __future__ import annotations

from typing import Any

from vgen.pipelines.base import BasePipeline, VideoPipelineOutput
from vgen.pipelines.call.settings import with_settings


class TextToVideoPipeline(BasePipeline):
    """Generate clips from prompts."""

    @with_settings
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        **settings: Any,
    ) -> VideoPipelineOutput | tuple[Any, ...]:
        """Generate.

        Args:
            prompt: what to show; one, or a list.
            negative_prompt: what to keep away from.
        """
        return self._generate({"prompt": prompt, "negative_prompt": negative_prompt, **settings})
