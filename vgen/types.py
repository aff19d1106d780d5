"""Frame, stride and size arithmetic: the only place where it is done.

`num_frames` counts pixel frames, `latent_frames` = (num_frames - 1) // temporal stride + 1: a causal VAE
gives the first frame a latent of its own and every later group of `temporal` frames one latent.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

from vgen.errors import ShapeError

FitMode = Literal["cover", "contain", "stretch"]
"""How a picture of another size is fitted, see vgen.io.media.images.fit_image."""


class Strides(NamedTuple):
    """Pixels per latent along each axis, e.g. Strides(8, 32, 32) for LTX-Video."""

    temporal: int
    height: int
    width: int


class LatentShape(NamedTuple):
    """Size of a latent video: latent frames, latent rows, latent columns."""

    frames: int
    height: int
    width: int

    @property
    def num_tokens(self) -> int:
        """Number of transformer tokens at patch size 1."""
        return self.frames * self.height * self.width


class VideoShape(NamedTuple):
    """Size of a video in pixels: frames, rows, columns."""

    num_frames: int
    height: int
    width: int

    def check(self, strides: Strides) -> None:
        """Refuse sizes that do not fit `strides`.

        Raises:
            ShapeError: names the field, the value, the rule and the nearest values that fit.
        """
        _check_frames(self.num_frames, strides.temporal)
        _check_size("height", self.height, strides.height)
        _check_size("width", self.width, strides.width)

    def latent(self, strides: Strides) -> LatentShape:
        """The latent size of this video; checks that it fits first."""
        self.check(strides)
        return LatentShape(
            (self.num_frames - 1) // strides.temporal + 1, self.height // strides.height, self.width // strides.width
        )

    def within(self, strides: Strides, most_tokens: int) -> VideoShape:
        """The largest video of about this shape and at most this length that has at most `most_tokens` tokens.

        Args:
            strides: pixels per token, which the result fits.
            most_tokens: 1 or more.
        """
        latent = self.latent(strides)
        frames = min(latent.frames, most_tokens)
        area = most_tokens // frames
        shrink = min(1.0, (area / (latent.height * latent.width)) ** 0.5)
        height = min(max(int(latent.height * shrink), 1), area)
        width = min(max(int(latent.width * shrink), 1), area // height)
        return VideoShape.of_latent(LatentShape(frames, height, width), strides)

    @classmethod
    def of_latent(cls, latent: LatentShape, strides: Strides) -> VideoShape:
        """The pixel size that `latent` decodes to."""
        return cls(
            (latent.frames - 1) * strides.temporal + 1, latent.height * strides.height, latent.width * strides.width
        )


def _check_frames(num_frames: int, stride: int) -> None:
    if num_frames >= 1 and (num_frames - 1) % stride == 0:
        return
    below = max((num_frames - 1) // stride, 0) * stride + 1
    nearest = f"use {below} or {below + stride}" if num_frames >= 1 else "use 1 or more"
    raise ShapeError(
        f"num_frames={num_frames} does not fit temporal stride {stride}: "
        f"num_frames - 1 must divide by {stride}; {nearest}."
    )


def _check_size(field: str, value: int, stride: int) -> None:
    if value >= stride and value % stride == 0:
        return
    below = value // stride * stride
    nearest = f"use {below} or {below + stride}" if below > 0 else f"use {stride} or more"
    raise ShapeError(
        f"{field}={value} does not fit the model's stride {stride}: it must divide by {stride}; {nearest}."
    )


SkipMode = Literal["attention_values", "attention_skip", "transformer_block"]
"""What `SkipLayers` can leave out of a block, see there."""

SKIP_MODES = get_args(SkipMode)


class SkipLayers(NamedTuple):
    """A transformer made worse on purpose: what is left out of which of its blocks.

    Attributes:
        mode: "attention_values", every token attends to itself alone: the values are the attention's result;
            "attention_skip", the input of the self-attention takes the place of that result;
            "transformer_block", the whole block is left out.
        blocks: indices of the blocks, from 0.
    """

    mode: str
    blocks: tuple[int, ...]
