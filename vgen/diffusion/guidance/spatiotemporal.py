"""Spatiotemporal guidance: away from the same model with parts of it skipped."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from torch import Tensor

from vgen.diffusion.guidance.protocol import CONDITIONAL, Branch, Guidance, StepState
from vgen.diffusion.guidance.values import BySigma, Values, at_step, check_length, check_range, every
from vgen.errors import RequestError
from vgen.types import SKIP_MODES, SkipLayers

Blocks = Sequence[int] | Sequence[Sequence[int]] | BySigma
"""Indices of transformer blocks, from 0: the same at every step, a list per step, or lists by sigma."""


@dataclass(frozen=True)
class SpatioTemporalGuidance(Guidance):
    """cond + scale (cond - perturbed), where the perturbed branch leaves something out of some blocks.

    Attributes:
        blocks: see Blocks; steps without any run unperturbed.
        scale: 0 is off.
        mode: what is skipped, see types.SkipLayers.
        name: of the perturbed branch; give another where two of these are composed.
    Source: Hyung et al. 2024 (Spatiotemporal Skip Guidance), eq. 7.
    """

    blocks: Blocks
    scale: Values = 1.0
    mode: str = "attention_values"
    name: str = "perturbed"

    def __post_init__(self) -> None:
        check_range("stg_scale", self.scale, 0, math.inf, "is negative or not a number: use 0 (off) or more.")
        check_mode(self.mode)
        for blocks in _lists(self.blocks):
            if not isinstance(blocks, (list, tuple)) or not all(
                isinstance(block, Integral) and not isinstance(block, bool) for block in blocks
            ):
                raise RequestError(f"stg_blocks={blocks!r} is not a list of block indices, for instance [14].")

    @property
    def needs_negative(self) -> bool:
        """Never: both branches are on the prompt."""
        return False

    def branches(self, step: StepState) -> Sequence[Branch]:
        """The conditional branch, and the perturbed one where guidance is on."""
        blocks: tuple[int, ...] = tuple(at_step(self.blocks, step) if _by_step(self.blocks) else _lists(self.blocks)[0])
        if not blocks or not at_step(self.scale, step) > 0:
            return (CONDITIONAL,)
        return (CONDITIONAL, Branch(self.name, skip_layers=SkipLayers(self.mode, blocks)))

    def combine(self, predictions: Mapping[str, Tensor], step: StepState) -> Tensor:
        """See the class."""
        conditional = predictions[CONDITIONAL.name]
        if len(self.branches(step)) == 1:
            return conditional
        return conditional + at_step(self.scale, step) * (conditional - predictions[self.name])

    def check(self, num_steps: int, num_blocks: int) -> None:
        """See Guidance.check."""
        check_length("stg_scale", self.scale, num_steps)
        if _by_step(self.blocks):
            check_length("stg_blocks", self.blocks, num_steps)
        for blocks in _lists(self.blocks):
            missing = [block for block in blocks if not 0 <= block < num_blocks]
            if missing:
                raise RequestError(f"stg_blocks={missing} are not there: the transformer has 0 to {num_blocks - 1}.")


def check_mode(mode: Any) -> None:
    """Refuse a mode that is not known, or does nothing.

    Raises:
        RequestError: says why.
    """
    if mode == "residual":
        raise RequestError(
            "stg_mode='residual' leaves out a residual connection that this transformer's attention does not have, so "
            f"it would change nothing: use one of {', '.join(SKIP_MODES)}."
        )
    if mode not in SKIP_MODES:
        raise RequestError(f"stg_mode={mode!r} is not known: use one of {', '.join(SKIP_MODES)}.")


def _by_step(blocks: Any) -> bool:
    """Whether `blocks` are lists of blocks, not one list for all steps."""
    if isinstance(blocks, BySigma):
        return True
    return isinstance(blocks, (list, tuple)) and any(isinstance(entry, (list, tuple)) for entry in blocks)


def _lists(blocks: Any) -> list[Sequence[int]]:
    """All the lists of blocks that may come up."""
    return every(blocks) if _by_step(blocks) else [blocks]
