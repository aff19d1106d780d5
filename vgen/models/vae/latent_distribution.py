"""The encoder's answer: a diagonal Gaussian over latents."""

from __future__ import annotations

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor


class LatentDistribution:
    """Gaussian with independent components.

    Args:
        parameters: [B, 2 * C, f, h, w], means, then log-variances (clamped to [-30, 20]).
    """

    def __init__(self, parameters: Tensor) -> None:
        self.parameters = parameters
        self.mean, logvar = parameters.chunk(2, dim=1)
        self.logvar = logvar.clamp(-30.0, 20.0)

    @property
    def std(self) -> Tensor:
        """[B, C, f, h, w], standard deviation."""
        return torch.exp(0.5 * self.logvar)

    @property
    def var(self) -> Tensor:
        """[B, C, f, h, w], variance."""
        return torch.exp(self.logvar)

    def sample(self, generator: torch.Generator | list[torch.Generator] | None = None) -> Tensor:
        """[B, C, f, h, w], one draw; a list of generators gives each sample its own."""
        noise = randn_tensor(self.mean.shape, generator, self.mean.device, self.mean.dtype)
        return self.mean + self.std * noise

    def mode(self) -> Tensor:
        """[B, C, f, h, w], the most likely latents."""
        return self.mean

    def kl(self) -> Tensor:
        """[B], divergence from the standard normal, summed over all components of a sample."""
        terms = self.mean.square() + self.var - 1.0 - self.logvar
        return 0.5 * terms.flatten(1).sum(dim=1)
