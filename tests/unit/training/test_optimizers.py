"""Optimisers and the learning rate as a function of the step."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from vgen.errors import CheckpointError
from vgen.training.config.run import OptimizerConfig, ScheduleConfig
from vgen.training.optimizers import (
    LearningRate,
    OptimizerGroup,
    build_optimizer,
    learning_rate_factor,
    load_optimizer_state,
)


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            "embed": nn.Embedding(5, 4),
            "proj_in": nn.Linear(4, 4),
            "blocks": nn.ModuleList([nn.Linear(4, 4), nn.Conv1d(4, 4, 1)]),
        }
    )


def _step(module: nn.ModuleDict, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    hidden = module["blocks"][0](module["proj_in"](module["embed"](torch.arange(5))))
    module["blocks"][1](hidden.T.unsqueeze(0)).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (ScheduleConfig(name="cosine", warmup_steps=10, final_ratio=0.0), {0: 0.1, 9: 1.0, 10: 1.0, 60: 0.5, 110: 0.0}),
        (
            ScheduleConfig(name="wsd", warmup_steps=10, decay_steps=20, final_ratio=0.1),
            {4: 0.5, 50: 1.0, 90: 1.0, 100: 0.55, 110: 0.1},
        ),
        (ScheduleConfig(name="constant", warmup_steps=0), {0: 1.0, 109: 1.0}),
        (
            ScheduleConfig(name="cosine", warmup_steps=10, final_ratio=0.0, restarts=[60]),
            {9: 1.0, 35: 0.5, 60: 0.1, 69: 1.0, 90: 0.5, 110: 0.0},
        ),
    ],
)
def test_schedules(schedule: ScheduleConfig, expected: dict[int, float]) -> None:
    for step, factor in expected.items():
        assert learning_rate_factor(step, 110, schedule) == pytest.approx(factor, abs=1e-9)


def test_weight_decay_spares_vectors() -> None:
    optimizer = build_optimizer(_network(), OptimizerConfig(weight_decay=0.3))
    for group in optimizer.param_groups:
        matrices = {value.ndim >= 2 for value in group["params"]}
        assert matrices == {group["weight_decay"] > 0}


def test_muon_takes_hidden_matrices_only() -> None:
    module = _network()
    optimizer = build_optimizer(module, OptimizerConfig(name="muon", lr=0.1, muon_lr=0.2))
    assert isinstance(optimizer, OptimizerGroup)
    (group,) = [group for group in optimizer.param_groups if group["lr"] == 0.2]
    assert [value is module["blocks"][0].weight for value in group["params"]] == [True]
    total = sum(len(group["params"]) for group in optimizer.param_groups)
    assert total == len(list(module.parameters()))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_state_goes_on_and_the_recipe_rules_the_rate(name: str) -> None:
    config = OptimizerConfig(name=name, lr=0.01)
    module = _network()
    optimizer = build_optimizer(module, config)
    _step(module, optimizer)
    saved, weights = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(module.state_dict())
    _step(module, optimizer)

    again = _network()
    again.load_state_dict(weights)
    resumed = build_optimizer(again, config)
    load_optimizer_state(resumed, saved)
    _step(again, resumed)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), again.parameters(), strict=True))

    other = build_optimizer(again, OptimizerConfig(name=name, lr=0.5))
    load_optimizer_state(other, saved)
    assert {group["lr"] for group in other.param_groups} == {0.5}


def test_foreign_optimizer_state_is_refused() -> None:
    saved = build_optimizer(nn.Linear(2, 2), OptimizerConfig()).state_dict()
    with pytest.raises(CheckpointError, match="other parameters"):
        load_optimizer_state(build_optimizer(_network(), OptimizerConfig()), saved)


def test_learning_rate_is_set_on_every_group() -> None:
    optimizer = build_optimizer(_network(), OptimizerConfig(name="muon", lr=0.1, muon_lr=0.4))
    rate = LearningRate(optimizer, 100, ScheduleConfig(name="wsd", warmup_steps=4, decay_steps=10))
    assert rate.apply(1) == pytest.approx(0.05)
    assert {round(group["lr"], 6) for group in optimizer.param_groups} == {0.05, 0.2}
    rate.apply(50)
    assert {round(group["lr"], 6) for group in optimizer.param_groups} == {0.1, 0.4}
