"""Guidance: which branches of the model to run at a step, and how to combine their velocities.

The denoising loop knows only the protocol. A new kind of guidance is one small class: it names its branches (a branch
that needs another forward, such as skipped layers, says so in `model_kwargs`) and combines what they predict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from vgen.errors import RequestError


@dataclass(frozen=True)
class Branch:
    """One evaluation of the model within a step.

    Attributes:
        name: key of its prediction, and name of its cache.
        negative: conditioned on the negative prompt instead of the prompt.
        model_kwargs: further arguments of the transformer call; branches with equal ones run as one batch.
    """

    name: str
    negative: bool = False
    model_kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StepState:
    """Where the loop stands: step `index` of `num_steps`, at `sigma` (scalar tensor), with `latents` [B, N, C]."""

    index: int
    num_steps: int
    sigma: Tensor
    latents: Tensor


CONDITIONAL = Branch("cond")
UNCONDITIONAL = Branch("uncond", negative=True)


class Guidance(Protocol):
    """What the denoising loop asks of a guidance."""

    @property
    def needs_negative(self) -> bool:
        """Whether any step runs a branch on the negative prompt."""
        ...

    def branches(self, step: StepState) -> Sequence[Branch]:
        """The branches to run at this step, at least one."""
        ...

    def combine(self, predictions: Mapping[str, Tensor], step: StepState) -> Tensor:
        """Combine the velocities [B, N, C] of the branches, by name, into one."""
        ...


@dataclass(frozen=True)
class ClassifierFreeGuidance:
    """uncond + scale (cond - uncond), then optionally rescaled to the standard deviation of cond.

    Attributes:
        scale: 1 and below is off: only the conditional branch runs.
        rescale: in [0, 1]; share of the rescaled result in the mix.
    Source: Ho and Salimans 2022, eq. 6; Lin et al. 2023, eq. 15 and 16.
    """

    scale: float = 1.0
    rescale: float = 0.0

    def __post_init__(self) -> None:
        if not self.scale >= 0:
            raise RequestError(f"guidance_scale={self.scale} is negative or not a number: use 1 (off) or more.")
        if not 0 <= self.rescale <= 1:
            raise RequestError(f"guidance_rescale={self.rescale} is not a share: it must be in [0, 1]; 0 is off.")

    @property
    def needs_negative(self) -> bool:
        """Whether the unconditional branch runs."""
        return self.scale > 1

    def branches(self, step: StepState) -> Sequence[Branch]:
        """The unconditional branch, if guidance is on, and the conditional one."""
        return (UNCONDITIONAL, CONDITIONAL) if self.needs_negative else (CONDITIONAL,)

    def combine(self, predictions: Mapping[str, Tensor], step: StepState) -> Tensor:
        """See the class; with guidance off this is the conditional velocity itself."""
        conditional = predictions[CONDITIONAL.name]
        if not self.needs_negative:
            return conditional
        unconditional = predictions[UNCONDITIONAL.name]
        guided = unconditional + self.scale * (conditional - unconditional)
        return rescale_to(guided, conditional, self.rescale) if self.rescale > 0 else guided


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
