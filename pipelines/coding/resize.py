"""Given pixels of a call, brought to the size of one of its passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from vgen.diffusion.hiding import hide_pixels
from vgen.errors import RequestError
from vgen.pipelines.coding.given_pixels import GivenPixels, check_place
from vgen.pipelines.coding.soften import soften
from vgen.types import Strides, VideoShape


def soften_given(given: GivenPixels, crf: int) -> GivenPixels:
    """Soften a condition at its own size, see vgen.pipelines.coding.soften; 0 leaves it as it is.

    What a mask hides is replaced first, so that it does not bleed into its neighbours.
    """
    return given if crf == 0 else replace(given, pixels=soften(_without_hidden(given), crf))


def resize_conditions(
    given: Sequence[GivenPixels],
    shape: VideoShape,
    strides: Strides,
    prefix_latent_frames: int | None,
    every: int = 1,
) -> list[GivenPixels]:
    """Bring conditions to the size of a pass.

    Args:
        given: checked, at the size of the call.
        shape: of the pass.
        strides: pixels per latent.
        prefix_latent_frames: see Convention.
        every: the pass has every `every`-th frame of the call.
    Raises:
        RequestError: a condition that has no place among every `every`-th frame.
    """
    resized = []
    for index, entry in enumerate(given):
        start = entry.frame_index
        if start > 0 and start % every:
            raise RequestError(
                f"frame_index={start} falls between the frames of the first pass, which has every {every}nd one: use "
                f"{start - start % every} or {start + every - start % every}."
            )
        resized.append(resize_given(entry, shape, every))
        if start >= 0:
            place = resized[-1].frame_index, resized[-1].num_frames
            check_place(f"conditions[{index}]", *place, shape, strides, prefix_latent_frames)
    return resized


def resize_given(given: GivenPixels, shape: VideoShape, every: int = 1) -> GivenPixels:
    """Bring a condition, or a whole clip to start from, to another size.

    Args:
        given: [P, 3, F, H, W].
        shape: of the clip it shall belong to.
        every: of whose frames it keeps every `every`-th.
    Returns:
        Pixels resized bilinearly; of a mask only what depends on no hidden pixel stays given.
    """
    pixels = resize_video(_without_hidden(given)[:, :, ::every], shape.height, shape.width)
    mask = None if given.mask is None else resize_mask(given.mask[:, :, ::every], shape.height, shape.width)
    start = given.frame_index if given.frame_index < 0 else given.frame_index // every
    return replace(given, pixels=pixels, frame_index=start, mask=mask)


def resize_video(video: Tensor, height: int, width: int) -> Tensor:
    """[B, 3, F, H, W] -> [B, 3, F, height, width] in [-1, 1], bilinear, as LTX-Video's own code does between passes."""
    if tuple(video.shape[-2:]) == (height, width):
        return video
    frames = rearrange(video.clamp(-1, 1), "b c f h w -> (b f) c h w")
    resized = F.interpolate(frames, size=(height, width), mode="bilinear", align_corners=False).clamp(-1, 1)
    return rearrange(resized, "(b f) c h w -> b c f h w", b=video.shape[0])


def resize_mask(mask: Tensor, height: int, width: int) -> Tensor:
    """Resize a mask so that it never calls given what a bilinear resize mixes with something hidden.

    Args:
        mask: [B, 1, F, H, W] in [0, 1], 1 = given.
    Returns:
        [B, 1, F, height, width]: the smallest value around the nearest pixel, which holds every pixel that is mixed in.
    """
    if tuple(mask.shape[-2:]) == (height, width):
        return mask
    frames = rearrange(mask, "b c f h w -> (b f) c h w")
    smallest = -F.max_pool2d(-frames, kernel_size=3, stride=1, padding=1)
    resized = F.interpolate(smallest, size=(height, width), mode="nearest-exact")
    return rearrange(resized, "(b f) c h w -> b c f h w", b=mask.shape[0])


def _without_hidden(given: GivenPixels) -> Tensor:
    """The pixels, those whose mask is 0 replaced."""
    return given.pixels if given.mask is None else hide_pixels(given.pixels, (given.mask > 0).to(given.pixels))
