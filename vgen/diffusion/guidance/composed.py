"""Several guidances at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from vgen.diffusion.guidance.classifier_free import rescale_to
from vgen.diffusion.guidance.protocol import CONDITIONAL, Branch, Guidance, StepState
from vgen.diffusion.guidance.values import Values, at_step, check_length, check_range
from vgen.errors import RequestError


@dataclass(frozen=True)
class ComposedGuidance(Guidance):
    """The sum of what several guidances add to the conditional velocity, then optionally rescaled.

    Branches that several of them name run once.

    Attributes:
        parts: one or more.
        rescale: in [0, 1]; share of the result that is brought to the standard deviation of the conditional velocity.
    """

    parts: Sequence[Guidance]
    rescale: Values = 0.0

    def __post_init__(self) -> None:
        if not self.parts:
            raise RequestError("ComposedGuidance has no parts: give one or more guidances.")
        check_range("guidance_rescale", self.rescale, 0, 1, "is not a share: it must be in [0, 1]; 0 is off.")

    @property
    def needs_negative(self) -> bool:
        """Whether any part does."""
        return any(part.needs_negative for part in self.parts)

    def branches(self, step: StepState) -> Sequence[Branch]:
        """Those of all parts, each once, in their order."""
        named: dict[str, Branch] = {}
        for part in self.parts:
            for branch in part.branches(step):
                if named.setdefault(branch.name, branch) != branch:
                    raise RequestError(f"Two guidances name different branches {branch.name!r}: rename one.")
        return tuple(named.values())

    def combine(self, predictions: Mapping[str, Tensor], step: StepState) -> Tensor:
        """See the class."""
        conditional = predictions[CONDITIONAL.name]
        guided = self.parts[0].combine(predictions, step)
        for part in self.parts[1:]:
            guided = guided + (part.combine(predictions, step) - conditional)
        share = at_step(self.rescale, step)
        return rescale_to(guided, conditional, share) if share > 0 and len(predictions) > 1 else guided

    def check(self, num_steps: int, num_blocks: int) -> None:
        """See Guidance.check."""
        check_length("guidance_rescale", self.rescale, num_steps)
        for part in self.parts:
            part.check(num_steps, num_blocks)
