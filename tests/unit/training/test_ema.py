"""The average of the weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vgen.errors import CheckpointError
from vgen.training.ema import Ema, ema_decay


@pytest.mark.parametrize(("step", "decay"), [(0, 0.1), (1, 2 / 11), (90, 0.91), (10**6, 0.999)])
def test_decay(step: int, decay: float) -> None:
    assert ema_decay(step, 0.999) == pytest.approx(decay)


def test_average_follows_the_formula() -> None:
    module = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        module.weight.fill_(1.0)
    ema = Ema(module, limit=0.999)
    expected = 1.0
    for step in range(5):
        with torch.no_grad():
            module.weight.add_(1.0)
        ema.update(module, step)
        decay = (1 + step) / (10 + step)
        expected = decay * expected + (1 - decay) * (2.0 + step)
    assert float(ema.state_dict()["weight"]) == pytest.approx(expected, rel=1e-6)


def test_average_is_float32_and_weights_come_back() -> None:
    module = nn.Linear(2, 2, dtype=torch.bfloat16)
    module.bias.requires_grad_(False)
    ema = Ema(module)
    before = module.weight.detach().clone()
    with torch.no_grad():
        module.weight.zero_()
    assert list(ema.state_dict()) == ["weight"]
    assert ema.state_dict()["weight"].dtype == torch.float32
    with pytest.raises(RuntimeError, match="inside"), ema.applied(module):
        assert torch.equal(module.weight, before)
        raise RuntimeError("inside")
    assert not module.weight.any()


def test_foreign_state_is_refused() -> None:
    with pytest.raises(CheckpointError, match="do not belong"):
        Ema(nn.Linear(2, 2)).load_state_dict({"other": torch.zeros(2)})
