"""Video to video: a clip is noised in part and denoised again."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vgen.diffusion.tokens import token_strides
from vgen.errors import RequestError, ShapeError, counted
from vgen.pipelines.base import BasePipeline, VideoPipelineOutput
from vgen.pipelines.call.settings import GenerationSettings, with_settings
from vgen.pipelines.coding.given_pixels import (
    GivenPixels,
    VideoCondition,
    by_prompt,
    check_count,
    read_conditions,
)
from vgen.pipelines.coding.pixels import check_fit, read_frames
from vgen.types import FitMode, Strides, VideoShape


class VideoToVideoPipeline(BasePipeline):
    """Generate clips from other clips: the less of the schedule is run, the more of the clip is kept."""

    @with_settings
    def __call__(
        self,
        video: Any = None,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        denoise_strength: float = 0.6,
        *,
        fit: FitMode | None = None,
        **settings: Any,
    ) -> VideoPipelineOutput | tuple[Any, ...]:
        """Generate.

        Args:
            video: the clip to start from, see VideoCondition.frames; or as many as prompts (a list, or a batch), one
                each. Its length is that of the result, and without `fit` its size.
            prompt: what to show instead.
            negative_prompt: what to keep away from.
            denoise_strength: share of the schedule that is run, its end, in (0, 1]; 1 keeps nothing of the clip. Lists
                over steps are over those that run.
            fit: "cover", "contain" or "stretch" brings a clip to height and width, by default the model's; None takes
                its own size, and refuses another.
        """
        if video is None:
            raise RequestError("video is not given: pass the clip to start from, or use TextToVideoPipeline.")
        check_fit(fit)
        clips = [read_frames(clip, name) for clip, name in by_prompt(video, "video", dimensions=4)]
        frames, _, height, width = clips[0].shape
        given = {"prompt": prompt, "negative_prompt": negative_prompt, "denoise_strength": denoise_strength}
        given.update({name: value for name, value in settings.items() if value is not None})
        size = {"height": height, "width": width} if fit is None else {}
        given = {"num_frames": frames, **size, **given}
        filled = self.fill_settings(given)
        _check_size(filled, clips[0], token_strides(self.vae.strides, self.patch_size), fit)
        self.check_inputs(filled)
        return self._generate(given, clip=self._read(clips, filled, fit))

    def _read(self, clips: list[Tensor], settings: GenerationSettings, fit: FitMode | None) -> GivenPixels:
        """Check the clips' sizes and number, and bring them to one batch."""
        for clip in clips:
            if len(clip) != settings.num_frames:
                raise ShapeError(
                    f"video has {counted(len(clip), 'frame')} and num_frames={settings.num_frames}: give as many, or "
                    "leave num_frames out."
                )
        check_count(len(clips), settings.num_prompts, "video", "clip")
        conditions = [[VideoCondition(clip, fit=fit, name="video")] for clip in clips]
        per_prompt = conditions if len(clips) > 1 else conditions[0]
        return read_conditions(per_prompt, settings.shape, self.vae.strides, settings.num_prompts, None)[0]


def _check_size(settings: GenerationSettings, clip: Tensor, strides: Strides, fit: FitMode | None) -> None:
    """Refuse the clip's own size where the model cannot make it, with the way out."""
    own = tuple(clip.shape[2:]) == (settings.height, settings.width)
    try:
        VideoShape(1, settings.height, settings.width).check(strides)
    except ShapeError as error:
        hint = " Or pass fit='cover': it brings video to height and width." if own and fit is None else ""
        raise ShapeError(f"{error}{hint}") from None
