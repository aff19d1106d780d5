"""Clips of any length: window after window, each given the last decoded frames of the one before (Phenaki)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from vgen.pipelines.coding.given_pixels import VideoCondition
from vgen.pipelines.masked_prediction import MaskedPredictionPipeline
from vgen.request.windows import Window


@dataclass(frozen=True)
class Part:
    """A stretch of a long clip with one prompt.

    Attributes:
        prompt: what happens in it.
        settings: of the pipeline's calls (negative_prompt, guidance_scale, num_inference_steps ...).
        cross_fade: frames over which its prompt takes over from the one before.
    """

    prompt: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    cross_fade: int = 0


class Frames(Protocol):
    """Where frames go, and where the last ones can be had again; see `vgen.io.media.take.Take`."""

    windows_done: int

    def append(self, frames: np.ndarray) -> None:
        """Add uint8 [F, H, W, 3]."""

    def last(self, count: int) -> np.ndarray:
        """The last `count` frames."""

    def first(self) -> np.ndarray:
        """The first frame, uint8 [H, W, 3]."""


def make_windows(
    pipe: MaskedPredictionPipeline,
    parts: Sequence[Part],
    windows: Sequence[Window],
    frames: Frames,
    seed: int,
    first_windows: int = 0,
    after_window: Callable[[int, Window], None] = lambda number, window: None,
    reference: np.ndarray | Literal["first"] | None = None,
    **settings: Any,
) -> None:
    """Make the windows that are not there yet.

    Args:
        pipe: of the model.
        parts: one for each segment of the windows.
        windows: from `vgen.request.windows.plan_windows`.
        frames: takes what is made; windows that it has are not made again.
        seed: window number i draws from a generator seeded with seed + i, so that a resumed clip is the same clip.
        first_windows: entries of `frames.windows_done` that are no windows of this plan, such as given frames.
        after_window: called when a window is done.
        reference: uint8 [H, W, 3], a picture that every window is given to know how things look; or "first", the first
            frame, which every window but its own is given.
        **settings: of every call, under those of the parts.
    """
    starts = [min((w.start for w in windows if w.segment == part), default=0) for part in range(len(parts))]
    for number in range(frames.windows_done - first_windows, len(windows)):
        window = windows[number]
        known = [VideoCondition(frames.last(window.known))] if window.known else []
        picture = reference
        if isinstance(reference, str):
            picture = frames.first() if window.start else None
        if picture is not None:
            known.append(VideoCondition(picture, reference=True))
        video = pipe(
            conditions=known,
            **_prompt(pipe, parts, window, window.start - starts[window.segment], settings),
            **{**settings, **parts[window.segment].settings},
            num_frames=window.num_frames,
            generator=[torch.Generator("cpu").manual_seed(seed + number)],
            output_type="uint8",
        ).frames[0]
        frames.append(video[window.known : window.known + window.new])
        after_window(number, window)


def _prompt(
    pipe: MaskedPredictionPipeline, parts: Sequence[Part], window: Window, into: int, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """A window's prompt, or embeddings between two prompts while one takes over from the other."""
    part = parts[window.segment]
    share = (into + window.new / 2) / part.cross_fade if part.cross_fade else 1.0
    if window.segment == 0 or share >= 1:
        return {"prompt": part.prompt}
    before = parts[window.segment - 1].prompt
    call = {**settings, **part.settings, "prompt": part.prompt, "num_frames": window.num_frames}
    length = pipe.fill_settings(call).max_sequence_length
    text = pipe.encode_prompt([before, part.prompt], do_classifier_free_guidance=False, max_sequence_length=length)
    embeds, mask = blend(text.prompt_embeds, text.prompt_attention_mask, share)
    return {"prompt_embeds": embeds, "prompt_attention_mask": mask}


def blend(embeds: Tensor, mask: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Two prompts' embeddings [2, L, D] and masks [2, L] to what lies `share` of the way from the first to the second.

    Returns:
        [1, L, D] and [1, L]: where one of them has no token, the other's stands.
    """
    first, second = mask[0, :, None], mask[1, :, None]
    mixed = torch.lerp(embeds[0].float(), embeds[1].float(), share).to(embeds.dtype)
    only = torch.where(first & ~second, embeds[0], torch.where(second & ~first, embeds[1], mixed))
    return only[None], mask.any(dim=0, keepdim=True)
