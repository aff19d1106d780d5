"""Masked prediction: any frames or regions are known, the rest is generated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import NoneType
from typing import Any

from vgen.errors import RequestError
from vgen.pipelines.base import BasePipeline, VideoPipelineOutput
from vgen.pipelines.call.settings import with_settings
from vgen.pipelines.coding.given_pixels import VideoCondition
from vgen.types import FitMode


class MaskedPredictionPipeline(BasePipeline):
    """Generate clips in which pictures, clips or regions are given: continue, complete, inpaint."""

    _conditions_anywhere = True

    @with_settings
    def __call__(
        self,
        conditions: VideoCondition | Sequence[VideoCondition] | Sequence[Sequence[VideoCondition]] | None = None,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        *,
        fit: FitMode | None = None,
        **settings: Any,
    ) -> VideoPipelineOutput | tuple[Any, ...]:
        """Generate.

        Args:
            conditions: what is known, for all prompts; or a list of lists, one per prompt, that agree in frame_index,
                length and having a mask. None: nothing.
            prompt: what happens; "" is allowed.
            negative_prompt: what to keep away from.
            fit: for conditions that say none themselves, see VideoCondition.
        """
        if isinstance(conditions, VideoCondition):
            conditions = [conditions]
        if not isinstance(conditions, (list, tuple, NoneType)):
            raise RequestError(
                f"conditions is a {type(conditions).__name__}: give VideoCondition(frames), or a list of conditions."
            )
        given = {"prompt": prompt, "negative_prompt": negative_prompt, **settings}
        return self._generate(given, _with_fit(conditions or (), fit))


def _with_fit(conditions: Sequence[Any], fit: FitMode | None) -> Sequence[Any]:
    """The same nesting; what is no condition is refused later, by its place."""
    if fit is None:
        return conditions
    return [
        _with_fit(entry, fit)
        if isinstance(entry, (list, tuple))
        else replace(entry, fit=entry.fit or fit)
        if isinstance(entry, VideoCondition)
        else entry
        for entry in conditions
    ]
