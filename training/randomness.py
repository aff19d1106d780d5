"""Counter-based randomness: every draw is a function of (seed, purpose, step, micro-step, row) and of nothing else.

A run that is stopped and resumed therefore repeats the exact numbers of one that was never stopped, with any number
of workers, and without random states in the checkpoint. Draws belong to the whole batch, of which each process takes
its rows: any number of processes trains on the same numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def key_number(seed: int, purpose: str, *counters: int) -> int:
    """A 63-bit number that depends on all arguments and on nothing else."""
    text = f"{seed}|{purpose}|" + "|".join(str(counter) for counter in counters)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, purpose: str, step: int = 0, micro: int = 0, row: int = 0) -> torch.Generator:
    """A CPU generator of its own for one purpose at one place of the run.

    Args:
        seed: of the recipe.
        purpose: what is drawn, e.g. "noise", "sigma", "order".
        step: optimiser step, counted from 0.
        micro: micro-step inside the step (gradient accumulation).
        row: of the whole batch, for draws that each row makes for itself.
    """
    return torch.Generator().manual_seed(key_number(seed, purpose, step, micro, row))


@dataclass(frozen=True)
class Keys:
    """The place in the run that random draws of one micro-batch belong to.

    Args:
        seed: of the recipe.
        step: optimiser step, counted from 0.
        micro: micro-step inside the step.
        rank, world: which of how many processes; each has an equal part of the batch's rows.
    """

    seed: int
    step: int
    micro: int = 0
    rank: int = 0
    world: int = 1

    def number(self, purpose: str) -> int:
        """An integer seed for `purpose` at this place, the same in all processes."""
        return key_number(self.seed, purpose, self.step, self.micro, 0)

    def generator(self, purpose: str) -> torch.Generator:
        """A fresh CPU generator for `purpose` at this place, the same in all processes."""
        return generator(self.seed, purpose, self.step, self.micro)

    def first_row(self, count: int) -> int:
        """Where the rows of this process begin in the whole batch, if it has `count` of them."""
        return self.rank * count

    def rows(self, purpose: str, count: int, draw: Callable[[int, torch.Generator], Tensor]) -> Tensor:
        """This process's rows of a draw for the whole batch.

        Args:
            purpose: what is drawn.
            count: rows of this process.
            draw: makes [rows, ...] out of a number of rows and a generator.
        """
        begin = self.first_row(count)
        return draw(count * self.world, self.generator(purpose))[begin : begin + count]

    def normal(self, purpose: str, shape: Sequence[int]) -> Tensor:
        """Standard normal [B, ...] on the CPU; each row has a generator of its own, so that none is drawn in vain."""
        begin = self.first_row(shape[0])
        made = torch.empty(*shape)
        for row, values in enumerate(made, begin):
            values.normal_(generator=generator(self.seed, purpose, self.step, self.micro, row))
        return made
