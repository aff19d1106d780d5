"""`--upscale`: what can be refused before torch is imported, and the two passes for a pipeline's call."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vgen.errors import CheckpointError, RequestError, counted
from vgen.hub.find import component_config
from vgen.types import Strides, VideoShape

if TYPE_CHECKING:
    from vgen.request.request import ResolvedRequest


def check_upscale(request: ResolvedRequest, folder: Path, strides: Strides) -> list[str]:
    """Check the upsampler of a request against its model and its size, from headers and JSON alone.

    Args:
        request: resolved.
        folder: of the model, or its single file.
        strides: pixels per token of the model.
    Returns:
        What to say when the clip is finished; empty without an upsampler.
    Raises:
        CheckpointError: there is no such upsampler, or it is damaged.
        RequestError: it does not fit the model, or the size does not fit two passes.
    """
    if request.upscale is None:
        return []
    from vgen.hub.upsampler import find_upsampler
    from vgen.request.resolve import check_amount
    from vgen.request.two_pass_presets import PLAIN, pass_shapes, preset_named

    found = find_upsampler(request.upscale)
    channels = _latent_channels(folder)
    if found.channels != channels:
        raise RequestError(
            f"upscale={request.upscale!r} takes latents of {counted(found.channels, 'channel')} and the model's VAE "
            f"gives {channels}: use the upsampler that was made for it."
        )
    target = VideoShape(request.num_frames, request.height, request.width)
    factor = preset_named(request.upscale_preset or PLAIN).downscale_factor
    first, second = pass_shapes(target, strides, found.scale, factor)
    check_amount(second, strides)
    resized = "" if second == target else f", resized to {target.width} x {target.height}"
    frames = f" of {first.num_frames} and {second.num_frames} frames" if first.num_frames != second.num_frames else ""
    return [
        f"two passes ({request.upscale_preset}){frames}: {first.width} x {first.height}, then "
        f"{second.width} x {second.height}{resized}."
    ]


def _latent_channels(folder: Path) -> int:
    try:
        return int(component_config(folder, "vae").get("latent_channels", 128))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{folder}: latent_channels cannot be read: {error}.") from None


@lru_cache(maxsize=1)
def load_two_pass(name: str, preset: str, dtype: str, device: str) -> Any:
    """Load the upsampler; the clips of a prompt file share it."""
    import torch

    from vgen.pipelines import TwoPass, load_upsampler

    return TwoPass(load_upsampler(name, torch_dtype=getattr(torch, dtype), device=device), preset)
