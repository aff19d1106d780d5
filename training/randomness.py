"""Counter-based randomness: every draw is a function of (seed, purpose, step, micro, rank) and of nothing else.

A run that is stopped and resumed therefore repeats the exact numbers of one that was never stopped, with any number
of workers, and without random states in the checkpoint.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch


def key_number(seed: int, purpose: str, *counters: int) -> int:
    """A 63-bit number that depends on all arguments and on nothing else."""
    text = f"{seed}|{purpose}|" + "|".join(str(counter) for counter in counters)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, purpose: str, step: int = 0, micro: int = 0, rank: int = 0) -> torch.Generator:
    """A CPU generator of its own for one purpose at one place of the run.

    Args:
        seed: of the recipe.
        purpose: what is drawn, e.g. "noise", "sigma", "order".
        step: optimiser step, counted from 0.
        micro: micro-step inside the step (gradient accumulation).
        rank: process index.
    """
    return torch.Generator().manual_seed(key_number(seed, purpose, step, micro, rank))


@dataclass(frozen=True)
class Keys:
    """The place in the run that random draws of one micro-batch belong to."""

    seed: int
    step: int
    micro: int = 0
    rank: int = 0

    def number(self, purpose: str) -> int:
        """An integer seed for `purpose` at this place."""
        return key_number(self.seed, purpose, self.step, self.micro, self.rank)

    def generator(self, purpose: str) -> torch.Generator:
        """A fresh CPU generator for `purpose` at this place."""
        return generator(self.seed, purpose, self.step, self.micro, self.rank)
