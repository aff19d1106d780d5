"""Latents to frames: decode, paste what was given, convert."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from einops import repeat
from torch import Tensor

from vgen.engine.speed.host_copy import HostFrames
from vgen.pipelines.call.settings import GenerationSettings
from vgen.pipelines.coding.coder import Coder
from vgen.pipelines.coding.given_pixels import GivenPixels
from vgen.pipelines.coding.resize import resize_video


def decode_frames(
    coder: Coder, latents: Tensor, output: GenerationSettings, given: Sequence[GivenPixels], processor: Any
) -> Any:
    """What a call gives out for the latents of its last pass.

    Args:
        coder: of the last pass.
        latents: [B, C, f, h, w], normalised, float32.
        output: settings of the call: size, `output_type` and `keep_known_pixels`.
        given: pasted in, at the size of `output`.
        processor: diffusers' VideoProcessor.
    """
    if output.output_type == "latent":
        return latents
    keep, clips = output.keep_known_pixels, output.num_videos_per_prompt
    same_size = (coder.settings.height, coder.settings.width) == (output.height, output.width)
    if output.output_type == "uint8" and same_size:  # copied to the host piece by piece
        frames = HostFrames(output.num_frames)
        for piece in coder.decode_in_pieces(latents):
            frames.append(paste_known(piece.float(), given, keep, clips, frames.done))
            del piece
        return frames.finish()
    video = coder.decode(latents)
    if not same_size:
        video = resize_video(video, output.height, output.width)
    return to_output(paste_known(video, given, keep, clips), output.output_type, processor)


def paste_known(
    video: Tensor, given: Sequence[GivenPixels], keep: bool | None, num_videos_per_prompt: int, start: int = 0
) -> Tensor:
    """Put pixels given with strength 1 back where they were given.

    Args:
        video: [B, 3, F, H, W] in [-1, 1].
        given: the conditions.
        keep: True: of all conditions; None: of those with a mask; False: none.
        num_videos_per_prompt: clips for each prompt.
        start: which frame of the clip the first one of `video` is.
    Returns:
        [B, 3, F, H, W].
    """
    for entry in given:
        if keep is False or (keep is None and entry.mask is None) or entry.frame_index < 0:
            continue
        first = max(entry.frame_index, start)
        end = min(entry.frame_index + entry.num_frames, start + video.shape[2])
        if first >= end:
            continue
        here, of_entry = (slice(first - zero, end - zero) for zero in (start, entry.frame_index))
        known = (entry.strength == 1).view(-1, 1, 1, 1, 1)
        if entry.mask is not None:
            known = known & (entry.mask[:, :, of_entry] == 1)
        known, pixels = (
            repeat(tensor, "p ... -> (p n) ...", n=num_videos_per_prompt if tensor.shape[0] > 1 else 1).to(video.device)
            for tensor in (known, entry.pixels[:, :, of_entry])
        )
        pasted = torch.where(known, pixels.to(video), video[:, :, here])
        video = torch.cat([video[:, :, : here.start], pasted, video[:, :, here.stop :]], dim=2)
    return video


def to_output(video: Tensor, output_type: str, processor: Any) -> Any:
    """Decoded pixels as the caller wants them.

    Args:
        video: [B, 3, F, H, W], about [-1, 1], float32; overwritten.
        output_type: "pt" [B, F, 3, H, W] or "np" [B, F, H, W, 3], in [0, 1]; "uint8" [B, F, H, W, 3]; "pil".
        processor: diffusers' VideoProcessor, for "pil".
    """
    if output_type == "uint8":
        frames = HostFrames(video.shape[2])
        frames.append(video)
        return frames.finish()
    if output_type not in ("pt", "np"):
        return processor.postprocess_video(video, output_type=output_type)
    video = video.mul_(0.5).add_(0.5).clamp_(0, 1)  # in place: a clip is large, and nobody else has it
    if output_type == "pt":
        return video.transpose(1, 2)
    return video.permute(0, 2, 3, 4, 1).cpu().numpy()
