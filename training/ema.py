"""Exponential moving average of the trained weights, kept in float32."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vgen.errors import CheckpointError


def ema_decay(step: int, limit: float) -> float:
    """decay = min(limit, (1 + step) / (10 + step)): short memory first, `limit` later."""
    return min(limit, (1 + step) / (10 + step))


class Ema:
    """Float32 average of every trainable parameter of a module.

    Args:
        module: whose parameters with `requires_grad` are followed.
        limit: largest decay; 0 makes the average equal to the weights.

    Attributes:
        kept: inside `applied`, the module's own weights by name; empty elsewhere.
    """

    def __init__(self, module: nn.Module, limit: float = 0.999) -> None:
        self.limit = limit
        self.kept: dict[str, Tensor] = {}
        self.average = {name: value.detach().float().clone() for name, value in _trainable(module)}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move the average towards the weights after optimiser step `step` (counted from 0)."""
        weight = 1.0 - ema_decay(step, self.limit)
        values = [value.detach().float() for _, value in _trainable(module)]
        torch._foreach_lerp_(list(self.average.values()), values, weight)

    @torch.no_grad()
    def restart(self, module: nn.Module) -> None:
        """Forget the past: the average becomes the present weights."""
        for name, value in _trainable(module):
            self.average[name].copy_(value)

    @contextmanager
    def applied(self, module: nn.Module) -> Iterator[None]:
        """Give `module` the averaged weights inside the block, and its own back after it."""
        with torch.no_grad():
            self.kept = kept = {name: value.detach().clone() for name, value in _trainable(module)}
            self.copy_to(module)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in _trainable(module):
                    value.copy_(kept[name])
            self.kept = {}

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Overwrite the parameters of `module` with the average."""
        for name, value in _trainable(module):
            value.copy_(self.average[name])

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by parameter name."""
        return dict(self.average)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over saved averages.

        Raises:
            CheckpointError: the names are not those of this module.
        """
        if set(state) != set(self.average):
            odd = sorted(set(state) ^ set(self.average))
            raise CheckpointError(
                f"The averaged weights do not belong to this model: {len(odd)} names differ, e.g. {odd[0]}."
            )
        for name, value in state.items():
            self.average[name].copy_(value)


def _trainable(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, value) for name, value in module.named_parameters() if value.requires_grad]
