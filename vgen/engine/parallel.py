"""One clip on several processes: the branches of a guidance, each on its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from vgen.errors import RequestError


class Named(Protocol):
    """A branch of a guidance."""

    name: str


AnyBranch = TypeVar("AnyBranch", bound=Named)


class BranchParallel:
    """Spreads the branches of every step over the processes of a group, and gives all of them every prediction.

    All processes make the same call with the same seed; each computes its share of the branches, and everything else
    alike. With guidance on two processes a step takes as long as one without.

    Args:
        group: of torch.distributed; None: all processes.
    Raises:
        RequestError: torch.distributed has not been set up.
    """

    def __init__(self, group: Any = None) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            raise RequestError(
                "branch_parallel needs several processes: start them with torchrun, and call "
                "torch.distributed.init_process_group first."
            )
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

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
        found: dict[str, Tensor] = {}
        for index, branch in enumerate(branches):
            owner = index % self.size
            prediction = predictions[branch.name].contiguous() if owner == self.rank else torch.empty_like(like)
            source = owner if self.group is None else dist.get_global_rank(self.group, owner)
            dist.broadcast(prediction, src=source, group=self.group)
            found[branch.name] = prediction
        return found
