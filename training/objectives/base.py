"""What the training loop asks of an objective."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vgen.errors import CheckpointError
from vgen.training.control import Control
from vgen.training.data.plan import Batch
from vgen.training.ema import Ema
from vgen.training.randomness import Keys
from vgen.training.recipe import OptimizerConfig

QUANTILES = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Of sigma: where a flow is validated."""


def losses_at_quantiles(loss: Callable[[float], float]) -> dict[str, float]:
    """{"loss_at_0.1", ..., "loss"}: a loss at fixed quantiles of sigma, and their mean."""
    measured = {f"loss_at_{quantile}": loss(quantile) for quantile in QUANTILES}
    return {**measured, "loss": sum(measured.values()) / len(QUANTILES)}


class Objective(nn.Module, ABC):
    """A module that holds what is trained; its forward is the loss.

    Sub-modules assigned as attributes are trained, averaged and checkpointed; what is only used belongs outside them.
    """

    origin = ""
    """Names, by content, the model that is used but not checkpointed; checkpoints go with no other."""

    def forward(self, batch: Batch, keys: Keys) -> tuple[Tensor, dict[str, Tensor]]:
        """The same as `loss`: calling the module lets distributed wrappers see it."""
        return self.loss(batch, keys)

    @abstractmethod
    def loss(self, batch: Batch, keys: Keys) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a micro-batch, and detached scalars to log. All randomness comes from `keys`."""

    def prepare(self, batch: Batch, keys: Keys) -> Batch:
        """Add to a micro-batch what the loss would draw or render on the CPU, so that workers do it ahead.

        A loss that is given a batch without it does the same itself.
        """
        return batch

    def rehearse(self, batch: Batch) -> Tensor:
        """The loss of a micro-batch without looking at values: what is counted on tensors that have none."""
        return self.loss(batch, Keys(0, 0))[0]

    def rehearse_most(self, batch: Batch) -> Tensor:
        """The same with the most that a micro-batch of its shape can hold, where that varies."""
        return self.rehearse(batch)

    def tokens(self, batch: Batch) -> int:
        """How many positions of the model a micro-batch has; 0 leaves them out of the log."""
        return 0

    def before_step(self, step: int, ema: Ema) -> None:
        """Change weights between two stages of a recipe; a function of the step, so that a resumed run repeats it."""
        return None

    def own_optimizers(self) -> dict[str, OptimizerConfig]:
        """Optimisers of their own for parameters whose names start so; the rest gets the recipe's."""
        return {}

    @abstractmethod
    def validate(self, step: int, folder: Path, control: Control) -> dict[str, float]:
        """Measure the present weights on held-out data and write a sample sheet into `folder`."""

    @abstractmethod
    def finish(self, folder: Path, dtype: torch.dtype, control: Control) -> dict[str, float]:
        """Write the model with the present (averaged) weights to `folder`; returns closing measures."""


class TrainedOnly(Objective):
    """An objective whose checkpoints hold what is trained and nothing else: a frozen model is not copied into each."""

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # type: ignore[override]
        """The parameters that are trained."""
        return {name: value.detach() for name, value in self.named_parameters() if value.requires_grad}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """Take over what `state_dict` gave.

        Raises:
            CheckpointError: it is of another LoRA.
        """
        own = self.state_dict()
        odd = sorted(set(state) ^ set(own)) + [
            name for name in own if name in state and own[name].shape != state[name].shape
        ]
        if odd:
            raise CheckpointError(
                f"The checkpoint does not belong to this recipe: {len(odd)} trained tensors differ, e.g. {odd[0]}; "
                "the rank, the targets or the model have changed."
            )
        for name, value in state.items():
            own[name].copy_(value)
