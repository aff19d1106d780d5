"""Optimisers and learning-rate schedules; the schedule is a function of the step and has no state."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vgen.errors import CheckpointError, VgenError
from vgen.training.config.run import OptimizerConfig, ScheduleConfig


class OptimizerGroup(torch.optim.Optimizer):
    """Several optimisers that act as one: the state is the list of theirs, the param groups are shared."""

    def __init__(self, members: list[torch.optim.Optimizer]) -> None:
        self.members = members
        super().__init__([group for member in members for group in member.param_groups], {})
        self.param_groups = [group for member in members for group in member.param_groups]

    def step(self, closure: None = None) -> None:  # type: ignore[override]  # takes no closure
        """One step of every member."""
        for member in self.members:
            member.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of every member."""
        for member in self.members:
            member.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """{"members": [state of each]}."""
        return {"members": [member.state_dict() for member in self.members]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Hand each member its part of `state_dict()`."""
        for member, part in zip(self.members, state_dict["members"], strict=True):
            member.load_state_dict(part)
        self.param_groups = [group for member in self.members for group in member.param_groups]


def build_optimizer(
    module: nn.Module, config: OptimizerConfig, apart: Mapping[str, OptimizerConfig] | None = None
) -> torch.optim.Optimizer:
    """The recipe's optimiser over the trainable parameters of `module`.

    Parameters whose names start as a key of `apart` says get an AdamW of their own.
    Weight decay acts on matrices and convolutions only. With "muon", the 2-D weights inside repeated blocks go to Muon
    and everything else (embeddings, first and last projections, norms, biases, convolutions) to AdamW.
    """
    every = [(name, value) for name, value in module.named_parameters() if value.requires_grad]
    apart = apart or {}
    named = [(name, value) for name, value in every if not name.startswith(tuple(apart))]
    muon = [value for name, value in named if config.name == "muon" and _is_hidden_matrix(name, value)]
    chosen = {id(value) for value in muon}
    rest = [value for _, value in named if id(value) not in chosen]
    if config.name == "adamw8bit":
        return _adamw_8bit(rest, config)
    members: list[torch.optim.Optimizer] = []
    if rest or not muon:  # of a LoRA every factor may be Muon's
        groups = _decay_groups(rest, config)
        members.append(torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, foreach=True))
    if muon:
        lr = config.muon_lr if config.muon_lr is not None else config.lr
        members.append(torch.optim.Muon(muon, lr=lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"))
    for prefix, other in apart.items():
        values = [value for name, value in every if name.startswith(prefix)]
        groups = _decay_groups(values, other)
        members.append(torch.optim.AdamW(groups, lr=other.lr, betas=other.betas, eps=other.eps, foreach=True))
    return members[0] if len(members) == 1 else OptimizerGroup(members)


def _adamw_8bit(values: Iterable[nn.Parameter], config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW of torchao: both moments of large tensors in 8 bits, a quarter of the memory."""
    try:
        from torchao.optim import AdamW8bit
    except ImportError:
        raise VgenError(
            "optimizer.name=adamw8bit needs torchao: pip install 'vgen[low-memory]', or use adamw."
        ) from None
    return AdamW8bit(_decay_groups(values, config), lr=config.lr, betas=config.betas, eps=config.eps)


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take over saved moments, but keep the hyper-parameters that the recipe has now."""
    if isinstance(optimizer, OptimizerGroup):
        for member, part in zip(optimizer.members, state["members"], strict=True):
            load_optimizer_state(member, part)
        optimizer.param_groups = [group for member in optimizer.members for group in member.param_groups]
        return
    present = optimizer.state_dict()["param_groups"]
    saved = state["param_groups"]
    if [group["params"] for group in present] != [group["params"] for group in saved]:
        raise CheckpointError(
            "The saved optimiser state is for other parameters: optimizer or objective.model changed."
        )
    optimizer.load_state_dict({"state": state["state"], "param_groups": present})


class LearningRate:
    """Sets an optimiser's learning rates; remembers the rates it was built with.

    Args:
        optimizer: freshly built, at its base rates.
        total_steps: of the run.
        config: the schedule.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, total_steps: int, config: ScheduleConfig) -> None:
        self.optimizer = optimizer
        self.total_steps = total_steps
        self.config = config
        self.base = [float(group["lr"]) for group in optimizer.param_groups]

    def apply(self, step: int) -> float:
        """Set the rates for `step` (counted from 0); returns the first group's."""
        factor = learning_rate_factor(step, self.total_steps, self.config)
        for group, base in zip(self.optimizer.param_groups, self.base, strict=True):
            if isinstance(group["lr"], Tensor):  # torchao's, which would be compiled again for every number
                group["lr"].fill_(base * factor)
            else:
                group["lr"] = base * factor
        return self.base[0] * factor


def learning_rate_factor(step: int, total_steps: int, config: ScheduleConfig) -> float:
    """What the base learning rate is multiplied with at `step` (counted from 0).

    A linear warm-up, then "cosine" (half a cosine to `final_ratio`), "wsd" (constant, then linear to `final_ratio` over
    the last `decay_steps`), or "constant".
    """
    begin = max((restart for restart in config.restarts if restart <= step), default=0)
    end = min((restart for restart in config.restarts if restart > step), default=total_steps)
    step, total_steps = step - begin, end - begin
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.name == "constant":
        return 1.0
    if config.name == "wsd":
        left = (total_steps - step) / max(1, config.decay_steps)
        return config.final_ratio + (1 - config.final_ratio) * min(1.0, max(0.0, left))
    done = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    return config.final_ratio + (1 - config.final_ratio) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def _is_hidden_matrix(name: str, value: nn.Parameter) -> bool:
    inside_block = any(part.isdigit() for part in name.split("."))
    lookup = any(word in name for word in ("embed", "shared", "relative_attention", "scale_shift_table"))
    return value.ndim == 2 and inside_block and not lookup


def _decay_groups(values: Iterable[nn.Parameter], config: OptimizerConfig) -> list[dict[str, Any]]:
    values = list(values)
    decayed = [value for value in values if value.ndim >= 2]
    plain = [value for value in values if value.ndim < 2]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
