"""Draws of noise, such that equal seeds give equal clips."""

from __future__ import annotations

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from vgen.pipelines.call.settings import Generators


def draw(
    shape: tuple[int, ...], generator: Generators, device: torch.device, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Standard normal noise; a list of generators gives each entry of the batch what it would get alone."""
    return randn_tensor(shape, generator=generator, device=device, dtype=dtype)
