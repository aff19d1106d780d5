"""What a pipeline returns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import PIL.Image
from diffusers.utils import BaseOutput
from torch import Tensor


@dataclass
class VideoPipelineOutput(BaseOutput):
    """The generated clips.

    Attributes:
        frames: by `output_type`: "pil", a list of lists of pictures; "np", [B, F, H, W, 3] in [0, 1]; "pt",
            [B, F, 3, H, W] in [0, 1]; "uint8", an array [B, F, H, W, 3], rounded and copied piece by piece as the
            decoder gives it out; "latent", normalised latents [B, C, f, h, w].
    """

    frames: list[list[PIL.Image.Image]] | np.ndarray | Tensor
