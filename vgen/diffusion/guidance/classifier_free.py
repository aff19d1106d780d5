"""Classifier-free guidance: away from the negative prompt."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from vgen.diffusion.guidance.protocol import CONDITIONAL, UNCONDITIONAL, Branch, Guidance, StepState
from vgen.diffusion.guidance.values import Values, at_step, check_length, check_range, every


@dataclass(frozen=True)
class ClassifierFreeGuidance(Guidance):
    """uncond + scale (cond - uncond), then optionally rescaled to the standard deviation of cond.

    Attributes:
        scale: 1 and below is off: only the conditional branch runs.
        rescale: in [0, 1]; share of the rescaled result in the mix.
        star: first scale uncond to its projection on cond (CFG-star), see `project_unconditional`.
    Source: Ho and Salimans 2022, eq. 6; Lin et al. 2023, eq. 15 and 16; Fan et al. 2025 (CFG-Zero*), eq. 9.
    """

    scale: Values = 1.0
    rescale: Values = 0.0
    star: bool = False

    def __post_init__(self) -> None:
        check_range("guidance_scale", self.scale, 0, math.inf, "is negative or not a number: use 1 (off) or more.")
        check_range("guidance_rescale", self.rescale, 0, 1, "is not a share: it must be in [0, 1]; 0 is off.")

    @property
    def needs_negative(self) -> bool:
        """Whether the unconditional branch runs at any step."""
        return any(scale > 1 for scale in every(self.scale))

    def branches(self, step: StepState) -> Sequence[Branch]:
        """The unconditional branch, if guidance is on, and the conditional one."""
        return (UNCONDITIONAL, CONDITIONAL) if at_step(self.scale, step) > 1 else (CONDITIONAL,)

    def combine(self, predictions: Mapping[str, Tensor], step: StepState) -> Tensor:
        """See the class; with guidance off this is the conditional velocity itself."""
        conditional, scale = predictions[CONDITIONAL.name], at_step(self.scale, step)
        if not scale > 1:
            return conditional
        unconditional = predictions[UNCONDITIONAL.name]
        if self.star:
            unconditional = project_unconditional(unconditional, conditional)
        guided = unconditional + scale * (conditional - unconditional)
        share = at_step(self.rescale, step)
        return rescale_to(guided, conditional, share) if share > 0 else guided

    def check(self, num_steps: int, num_blocks: int) -> None:
        """See Guidance.check."""
        check_length("guidance_scale", self.scale, num_steps)
        check_length("guidance_rescale", self.rescale, num_steps)


def rescale_to(guided: Tensor, conditional: Tensor, share: float) -> Tensor:
    """Mix `guided` with itself brought to the standard deviation of `conditional`, sample by sample.

    Args:
        guided: [B, N, C].
        conditional: [B, N, C].
        share: of the rescaled velocity in the result.
    Returns:
        [B, N, C].
    Source: Lin et al. 2023, eq. 15 and 16.
    """
    axes = tuple(range(1, guided.ndim))
    ratio = conditional.std(dim=axes, keepdim=True) / guided.std(dim=axes, keepdim=True)
    return share * (guided * ratio) + (1 - share) * guided


def project_unconditional(unconditional: Tensor, conditional: Tensor) -> Tensor:
    """Scale the unconditional velocity to the length that comes closest to the conditional one, sample by sample.

    <cond, uncond> / |uncond|^2 uncond

    Args:
        unconditional: [B, N, C].
        conditional: [B, N, C].
    Returns:
        [B, N, C].
    Source: Fan et al. 2025 (CFG-Zero*), eq. 9.
    """
    axes = tuple(range(1, conditional.ndim))
    product = (conditional * unconditional).sum(dim=axes, keepdim=True)
    return product / (unconditional.square().sum(dim=axes, keepdim=True) + 1e-8) * unconditional
