"""Which device is chosen, and what is measured on it."""

from __future__ import annotations

import pytest
import torch

from vgen.engine.device import DTYPES, choose_device, peak_flops, seconds
from vgen.errors import RequestError


def test_devices_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == "cpu"
    with pytest.raises(RequestError, match=r"device='cuda' is not on this machine: there is no CUDA device; use cpu"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto") == "cuda"
    assert choose_device("cuda:1") == "cuda:1"
    with pytest.raises(RequestError, match="cuda:0 to cuda:1 are there"):
        choose_device("cuda:2")


def test_the_rate_is_that_of_the_fastest_run(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([9.0, 0.5, 2.0, 1.0])
    monkeypatch.setattr("vgen.engine.device.seconds", lambda work, device, clock: (work(), next(times))[1])
    assert peak_flops(torch.device("cpu"), DTYPES["float32"]) == 2 * 1536**3 / 0.5


def test_a_clock_is_read_around_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [3.0]
    monkeypatch.setattr("vgen.engine.device.CLOCKS", {"process": lambda: now[0]})
    assert seconds(lambda: now.__setitem__(0, 5.0), torch.device("cpu"), "process") == 2.0
