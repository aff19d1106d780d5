"""Processes that work on one thing together: who they are, and how much each takes."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor

from vgen.errors import RequestError


class Group:
    """A group of torch.distributed, seen from one of its processes.

    Args:
        user: what needs it, for the message.
        group: of torch.distributed; None: all processes.
    Raises:
        RequestError: torch.distributed has not been set up.
    """

    def __init__(self, user: str, group: Any = None) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            raise RequestError(
                f"{user} needs several processes: start them with torchrun, and call "
                "torch.distributed.init_process_group first."
            )
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def peer(self, rank: int) -> int:
        """The number, among all processes, of the process that is `rank` in this group."""
        return rank if self.group is None else dist.get_global_rank(self.group, rank)

    def join(self, part: Tensor, counts: list[int], dim: int) -> Tensor:
        """The parts of all processes, next to each other along `dim`.

        Args:
            part: of this process, of length counts[rank] along `dim` and elsewhere of the same sizes everywhere.
            counts: of all processes.
            dim: from 0.
        """
        shape = list(part.shape)
        shape[dim] = sum(counts)
        whole, start = part.new_empty(shape), 0
        for rank, count in enumerate(counts if whole.numel() else ()):
            shape[dim] = count
            theirs = part.contiguous() if rank == self.rank else part.new_empty(shape)
            dist.broadcast(theirs, src=self.peer(rank), group=self.group)
            whole.narrow(dim, start, count).copy_(theirs)
            start += count
        return whole


def shares(count: int, parts: int) -> list[int]:
    """`count` things over `parts`, next to each other: the first get one more where it does not divide."""
    each, more = divmod(count, parts)
    return [each + (part < more) for part in range(parts)]
