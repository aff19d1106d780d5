"""Which grid of processes is chosen, and what one process says when asked to be several."""

from __future__ import annotations

import pytest

from vgen.engine.processes.groups import shares
from vgen.engine.processes.sequence_parallel import SequenceParallel
from vgen.errors import RequestError
from vgen.jobs import processes
from vgen.models import VideoDiT
from vgen.request.process_grid import Layout, choose_layout


@pytest.mark.parametrize(
    ("count", "branches", "grid"),
    [
        (1, 2, (1, 1)),
        (2, 1, (1, 2)),
        (2, 2, (2, 1)),
        (3, 2, (1, 3)),
        (4, 2, (2, 2)),
        (8, 2, (2, 4)),
        (2, 3, (1, 2)),  # three branches on two processes would take two rounds
        (3, 3, (3, 1)),
        (6, 3, (3, 2)),
        (4, 3, (1, 4)),
    ],
)
def test_auto_takes_the_grid_with_the_shortest_step(count, branches, grid):
    assert choose_layout("auto", count, branches) == Layout(*grid)


def test_the_grids_that_are_asked_for():
    assert choose_layout("sequence", 4, 2) == Layout(1, 4)
    assert choose_layout("branches", 2, 3) == Layout(2, 1)
    with pytest.raises(RequestError, match="finds 2 branches of the guidance for 3 processes: start at most 2"):
        choose_layout("branches", 3, 2)
    with pytest.raises(RequestError, match="parallel='rows' is not known"):
        choose_layout("rows", 2, 2)


def test_shares_are_next_to_each_other_and_complete():
    assert shares(7, 3) == [3, 2, 2]
    assert shares(1, 2) == [1, 0]


def test_one_process_has_nobody_to_share_with(run_cli, tmp_path):
    done = run_cli("generate", "a circle", "-o", tmp_path / "a.mp4", "--parallel", "sequence")
    assert done.code == 2 and "needs several processes, and this is one" in done.err
    assert run_cli("generate", "a circle", "-o", tmp_path / "a.mp4", "--parallel", "rows").code == 2
    model = VideoDiT(num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16, num_layers=1)
    with pytest.raises(RequestError, match="start them with torchrun"):
        SequenceParallel(model)


def test_every_process_takes_a_device_of_its_own(monkeypatch):
    assert processes.count() == 1 and processes.leads() and processes.agree(7) == 7
    torchrun = {
        "RANK": 3,
        "WORLD_SIZE": 4,
        "LOCAL_RANK": 1,
        "LOCAL_WORLD_SIZE": 2,
        "MASTER_ADDR": "a",
        "MASTER_PORT": 1,
    }
    for name, value in torchrun.items():
        monkeypatch.setenv(name, str(value))
    assert processes.count() == 4 and not processes.leads()
    assert processes.place("cpu") == "cpu"
    with pytest.raises(RequestError, match=r"'cuda:0' is one device for 4 processes"):
        processes.place("cuda:0")
    taken = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.set_device", taken.append)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert processes.place("auto") == processes.place("cuda") == "cuda:1" and taken == [1, 1]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(RequestError, match="2 processes were started on a machine with 1 GPUs: start at most 1"):
        processes.place("auto")
