"""Adaptive projected guidance: strong guidance without the burnt colours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vgen.diffusion.flow import velocity_to_clean
from vgen.diffusion.guidance.protocol import CONDITIONAL, UNCONDITIONAL, Branch, Guidance, StepState
from vgen.diffusion.guidance.values import Values, at_step, check_length, check_range, every


@dataclass
class AdaptiveProjectedGuidance(Guidance):
    """Guide the predicted clean latents, with little of what only makes them stronger.

    clean = cond + (scale - 1) (orthogonal + eta parallel), where the two parts of the averaged and shortened difference
    cond - uncond are those across and along cond.

    Attributes:
        scale: 1 and below is off.
        eta: what is kept of the parallel part; 1 with no threshold and no momentum is classifier-free guidance.
        norm_threshold: longest difference (2-norm of a sample); 0 is no limit.
        momentum: weight of the earlier steps' differences in the average; negative steers away from them.
    Source: Sadat et al. 2024, algorithm 1.
    """

    scale: Values = 1.0
    eta: float = 0.0
    norm_threshold: float = 15.0
    momentum: float = -0.5
    _average: Tensor | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_range("guidance_scale", self.scale, 0, math.inf, "is negative or not a number: use 1 (off) or more.")
        check_range("eta", self.eta, 0, math.inf, "must be a number of 0 or more.")
        check_range("norm_threshold", self.norm_threshold, 0, math.inf, "must be a number of 0 (no limit) or more.")
        check_range("momentum", self.momentum, -1, 1, "must be in [-1, 1]; 0 is off.")

    @property
    def needs_negative(self) -> bool:
        """Whether the unconditional branch runs at any step."""
        return any(scale > 1 for scale in every(self.scale))

    def branches(self, step: StepState) -> Sequence[Branch]:
        """The unconditional branch, if guidance is on, and the conditional one."""
        return (UNCONDITIONAL, CONDITIONAL) if at_step(self.scale, step) > 1 else (CONDITIONAL,)

    def combine(self, predictions: Mapping[str, Tensor], step: StepState) -> Tensor:
        """See the class."""
        if step.index == 0:
            self._average = None
        conditional, scale = predictions[CONDITIONAL.name], at_step(self.scale, step)
        if not scale > 1:
            return conditional
        axes, sigma = tuple(range(1, conditional.ndim)), step.sigma.to(conditional)
        clean = velocity_to_clean(step.latents.to(conditional), conditional, sigma)
        # clean = latents - sigma velocity, so the latents drop out of the difference.
        difference = -sigma * (conditional - predictions[UNCONDITIONAL.name])
        if self._average is not None:
            difference = difference + self.momentum * self._average
        self._average = difference
        if self.norm_threshold > 0:
            length = torch.linalg.vector_norm(difference, dim=axes, keepdim=True)
            difference = difference * (self.norm_threshold / length).clamp(max=1)
        squared = clean.square().sum(dim=axes, keepdim=True).clamp(min=1e-24)
        parallel = (difference * clean).sum(dim=axes, keepdim=True) / squared * clean
        update = difference - parallel + self.eta * parallel
        return conditional - (scale - 1) * update / sigma

    def check(self, num_steps: int, num_blocks: int) -> None:
        """See Guidance.check."""
        check_length("guidance_scale", self.scale, num_steps)
