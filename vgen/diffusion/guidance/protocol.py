"""What the denoising loop asks of a guidance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from vgen.types import SkipLayers


@dataclass(frozen=True)
class Branch:
    """One evaluation of the model within a step.

    Attributes:
        name: key of its prediction, and name of its cache.
        negative: conditioned on the negative prompt instead of the prompt.
        model_kwargs: further arguments of the transformer call; branches with equal ones can run as one batch.
        skip_layers: what the transformer leaves out for this branch; does not keep it from sharing a batch.
    """

    name: str
    negative: bool = False
    model_kwargs: Mapping[str, Any] = field(default_factory=dict)
    skip_layers: SkipLayers | None = None


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
    """Names the branches of a step and combines their velocities. Derive from it to write a new one."""

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

    def check(self, num_steps: int, num_blocks: int) -> None:
        """Refuse what cannot work with this number of steps and transformer blocks, before anything is computed.

        Raises:
            RequestError: says what does not fit.
        """
        return
