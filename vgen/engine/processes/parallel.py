"""One clip on several processes: the branches of a guidance, each on its own; and setting a pipeline up for a grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from vgen.engine.processes.groups import Group
from vgen.engine.processes.sequence_parallel import SequenceParallel
from vgen.engine.processes.vae_parallel import VaeParallel
from vgen.errors import RequestError
from vgen.request.process_grid import Layout


class Named(Protocol):
    """A branch of a guidance."""

    @property
    def name(self) -> str:
        """Which of the guidance's branches it is."""


AnyBranch = TypeVar("AnyBranch", bound=Named)


class BranchParallel(Group):
    """Spreads the branches of every step over the processes of a group, and gives all of them every prediction.

    All processes make the same call with the same seed; each computes its share of the branches, and everything else
    alike. With guidance on two processes a step takes as long as one without.

    Args:
        group: of torch.distributed; None: all processes.
    Raises:
        RequestError: torch.distributed has not been set up.
    """

    def __init__(self, group: Any = None) -> None:
        super().__init__("branch_parallel", group)

    def mine(self, branches: Sequence[AnyBranch]) -> list[AnyBranch]:
        """The branches that this process computes."""
        return list(branches)[self.rank :: self.size]

    def gather(self, branches: Sequence[Named], predictions: Mapping[str, Tensor], like: Tensor) -> dict[str, Tensor]:
        """Every branch's prediction.

        Args:
            branches: all of them, in the same order everywhere.
            predictions: those of `mine`, by name.
            like: a tensor of a prediction's shape, dtype and device.
        Returns:
            By name, in the order of `branches`.
        """
        gathered: dict[str, Tensor] = {}
        for index, branch in enumerate(branches):
            owner = index % self.size
            prediction = predictions[branch.name].contiguous() if owner == self.rank else torch.empty_like(like)
            dist.broadcast(prediction, src=self.peer(owner), group=self.group)
            gathered[branch.name] = prediction
        return gathered


def spread(pipeline: Any, layout: Layout) -> None:
    """Set a pipeline up to share every call with the other processes; all of them call this, and then the same calls.

    The VAE codes pictures by stripes on all processes. Every process gets the whole result.

    Args:
        pipeline: has `transformer` (a VideoDiT) and `vae` (a CausalVideoVAE).
        layout: of all processes of torch.distributed, see vgen.request.process_grid; one process changes nothing.
    Raises:
        RequestError: torch.distributed has not been set up for that number of processes, or see SequenceParallel.
    """
    if layout == (1, 1):
        return
    world = Group("A pipeline on several processes")
    if world.size != layout.branches * layout.sequence:
        raise RequestError(
            f"A layout of {layout.branches} x {layout.sequence} needs {layout.branches * layout.sequence} processes, "
            f"and there are {world.size}."
        )
    numbers = torch.arange(world.size).view(layout)
    rows, columns = ([dist.new_group(members.tolist()) for members in grid] for grid in (numbers, numbers.T))
    if layout.sequence > 1:
        SequenceParallel(pipeline.transformer, rows[world.rank // layout.sequence])
    if layout.branches > 1:
        pipeline.branch_parallel = BranchParallel(columns[world.rank % layout.sequence])
    VaeParallel(pipeline.vae)
