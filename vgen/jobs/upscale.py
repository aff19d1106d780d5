"""`--upscale`: what can be refused before torch is imported, and the two passes for a pipeline's call."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from vgen.errors import RequestError, counted
from vgen.hub.model import Model
from vgen.types import VideoShape

if TYPE_CHECKING:
    from vgen.request.request import ResolvedRequest


def check_upscale(request: ResolvedRequest, model: Model) -> list[str]:
    """Check the upsampler of a request against its model and its size, from headers and JSON alone.

    Args:
        request: resolved.
        model: of the request.
    Returns:
        A sentence about the sizes of the passes; none without an upsampler.
    Raises:
        CheckpointError: there is no such upsampler, or it is damaged.
        RequestError: it does not fit the model, or the size does not fit two passes.
    """
    if request.upscale is None:
        return []
    from vgen.hub.upsampler import find_upsampler
    from vgen.request.resolve import check_amount
    from vgen.request.two_pass_presets import PLAIN, pass_shapes, preset_named

    upsampler = find_upsampler(request.upscale)
    channels, strides = model.component_number("vae", "latent_channels", 128), model.strides
    if upsampler.channels != channels:
        raise RequestError(
            f"upscale={request.upscale!r} takes latents of {counted(upsampler.channels, 'channel')} and the model's "
            f"VAE gives {channels}: use the upsampler that was made for it."
        )
    target = VideoShape(request.num_frames, request.height, request.width)
    factor = preset_named(request.upscale_preset or PLAIN).downscale_factor
    first, second = pass_shapes(target, strides, upsampler.scale, factor)
    check_amount(second, strides)
    resized = "" if second == target else f", resized to {target.width} x {target.height}"
    frames = f" of {first.num_frames} and {second.num_frames} frames" if first.num_frames != second.num_frames else ""
    return [
        f"two passes ({request.upscale_preset}){frames}: {first.width} x {first.height}, then "
        f"{second.width} x {second.height}{resized}."
    ]


@lru_cache(maxsize=1)
def load_two_pass(name: str, preset: str, dtype: str, device: str) -> Any:
    """Load the upsampler; the clips of a prompt file share it."""
    import torch

    from vgen.pipelines import TwoPass, load_upsampler

    return TwoPass(load_upsampler(name, torch_dtype=getattr(torch, dtype), device=device), preset)
