"""What the training loop, the export and the estimates ask of an objective."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from vgen.errors import CheckpointError
from vgen.models import CausalVideoVAE
from vgen.training.config.run import OptimizerConfig
from vgen.training.config.stages import Stage
from vgen.training.control import Control
from vgen.training.data.plan import Batch
from vgen.training.ema import Ema
from vgen.training.randomness import Keys

QUANTILES = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Of sigma: where a flow is validated."""


def losses_at_quantiles(loss: Callable[[float], float]) -> dict[str, float]:
    """{"loss_at_0.1", ..., "loss"}: a loss at fixed quantiles of sigma, and their mean."""
    measured = {f"loss_at_{quantile}": loss(quantile) for quantile in QUANTILES}
    return {**measured, "loss": sum(measured.values()) / len(QUANTILES)}


class Coding(NamedTuple):
    """Clips that a run encodes or decodes together, outside of the loss or (`in_step`) before it."""

    vae: CausalVideoVAE
    verb: Literal["encode", "decode"]
    num_frames: int
    canvas: tuple[int, int]
    batch: int
    in_step: bool = False


class TaskWork(NamedTuple):
    """What a micro-batch of a task does besides the loss of a plain one.

    Attributes:
        growth: tokens of the model, those given next to the clip included, over tokens of the clip.
        encoded: what is encoded for each row.
        rendering: renders what is given to one row; None: nothing is rendered.
    """

    growth: float = 1.0
    encoded: Sequence[Coding] = ()
    rendering: Callable[[], object] | None = None


@dataclass(frozen=True)
class Costs:
    """What shapes of weights and batches do not show of a run: for its estimate.

    Attributes:
        frozen: models that are used and not trained.
        frozen_weight_bytes: of a frozen weight where it is quantised; None: as it is held.
        host_bytes: of frozen weights that stay on the host.
        codings: the largest ones.
        validation: forwards of one sample in a validation, by num_frames.
        forwards_per_row: what a row of a micro-batch costs, in forwards of one sample.
        by_tokens: a micro-batch of another length costs in proportion to its tokens (a VAE's does not).
        settings: those that change a step's work and are no model's.
    """

    frozen: Sequence[nn.Module] = ()
    frozen_weight_bytes: float | None = None
    host_bytes: int = 0
    codings: Sequence[Coding] = ()
    validation: Mapping[int, float] = field(default_factory=dict)
    forwards_per_row: float = 3.0
    by_tokens: bool = True
    settings: str = ""


class Objective(nn.Module, ABC):
    """A module that holds what is trained; its forward is the loss.

    Sub-modules assigned as attributes are trained, averaged and checkpointed; what is only used belongs outside them.

    Attributes:
        trained_only: checkpoints hold what is trained and nothing else: a frozen model is not copied into each.
        origin: names, by content, the model that is used but not checkpointed; checkpoints go with no other.
    """

    trained_only = False
    origin = ""
    plain_task = ""
    """The task of a micro-batch in which nothing is given, see `task_shares`."""

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

    def exports(self) -> dict[str, nn.Module]:
        """The models that `finish` writes, by the names of a pipeline's components; nothing of a fine-tuned model."""
        return {}

    def rehearse(self, batch: Batch, given: int | None = None) -> Tensor:
        """The loss of a micro-batch without looking at values: what is counted on tensors that have none.

        Args:
            batch: without content.
            given: latent frames that are given next to the clip; None: nothing is given.
        """
        return self.loss(batch, Keys(0, 0))[0]

    def most_given(self, batch: Batch) -> int | None:
        """The `given` of the largest micro-batch of that shape that the recipe draws."""
        return None

    def task_shares(self, stage: Stage, num_frames: int) -> dict[str, float]:
        """How often a stage draws each task for clips of a length; adds up to 1."""
        return {self.plain_task: 1.0}

    def only_task(self, task: str) -> AbstractContextManager[None]:
        """Inside, no other task is drawn."""
        return nullcontext()

    def task_work(self, task: str, num_frames: int) -> TaskWork:
        """What a task other than the plain one does."""
        return TaskWork()

    def costs(self) -> Costs:
        """For the estimate of a run."""
        return Costs()

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # type: ignore[override]
        """What a checkpoint holds of the model."""
        if not self.trained_only:
            return super().state_dict(*args, **kwargs)
        return {name: value.detach() for name, value in self.named_parameters() if value.requires_grad}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Take over what `state_dict` gave.

        Raises:
            CheckpointError: it is of another LoRA.
        """
        if not self.trained_only:
            return super().load_state_dict(state, *args, **kwargs)
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
        return None
