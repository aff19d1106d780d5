"""An optimiser's state comes back from its file as it was, and goes on with the same steps."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from vgen.errors import CheckpointError
from vgen.training.checkpoint.optimizer_state import read_optimizer_state, write_optimizer_state
from vgen.training.config.run import OptimizerConfig
from vgen.training.optimizers import build_optimizer, load_optimizer_state


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"proj_in": nn.Linear(64, 64), "blocks": nn.ModuleList([nn.Linear(64, 64)])})


def _train(network: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        inputs = torch.randn(8, 64, generator=torch.Generator().manual_seed(step))
        network["blocks"][0](network["proj_in"](inputs)).square().mean().backward()  # type: ignore[index, operator]
        optimizer.step()


@pytest.mark.parametrize("name", ["adamw", "muon", "adamw8bit"])
def test_what_is_read_goes_on_to_the_bit(name: str, tmp_path: Path) -> None:
    if name == "adamw8bit":
        pytest.importorskip("torchao.optim")
    config = OptimizerConfig.model_validate({"name": name, "lr": 1e-2})
    network = _network()
    optimizer = build_optimizer(network, config)
    _train(network, optimizer, 3)
    write_optimizer_state(optimizer.state_dict(), tmp_path / "a.safetensors")
    other = copy.deepcopy(network)
    fresh = build_optimizer(other, config)
    load_optimizer_state(fresh, read_optimizer_state(tmp_path / "a.safetensors"))
    for one, its in ((network, optimizer), (other, fresh)):
        _train(one, its, 2)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(network.parameters(), _network().parameters(), strict=True))


def test_before_the_first_step_there_is_nothing_but_groups(tmp_path: Path) -> None:
    optimizer = build_optimizer(_network(), OptimizerConfig())
    write_optimizer_state(optimizer.state_dict(), tmp_path / "a.safetensors")
    found = read_optimizer_state(tmp_path / "a.safetensors")
    assert found["state"] == {}
    assert [group["params"] for group in found["param_groups"]] == [[0, 1], [2, 3]]


def test_what_has_no_form_in_a_file_is_refused(tmp_path: Path) -> None:
    state = {"state": {0: {"step": 3}}, "param_groups": [{"params": [0]}]}
    with pytest.raises(CheckpointError, match="keeps a int as 0/0/step"):
        write_optimizer_state(state, tmp_path / "a.safetensors")
    save_file({"0/0/step": torch.zeros(1)}, tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match="not the state of an optimiser"):
        read_optimizer_state(tmp_path / "b.safetensors")
