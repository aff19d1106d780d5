"""The branches of a guidance on two processes give what one process gives."""

from __future__ import annotations

import subprocess
import sys

import pytest

from vgen.engine.processes.parallel import BranchParallel
from vgen.errors import RequestError

PROGRAM = """
import sys
import torch
import torch.distributed as dist
from vgen.bench.arms import make_arms
from vgen.bench.scenarios import scenario_named
from vgen.engine.processes.parallel import BranchParallel

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
(arm,) = make_arms(scenario_named("cpu-tiny", num_frames=9), (), torch.device("cpu"), 0)
seen = []
arm.pipeline.transformer.register_forward_pre_hook(
    lambda _, args, kwargs: seen.append(len(kwargs["hidden_states"])), with_kwargs=True
)
calls = [dict(), dict(stg_scale=1.0, stg_blocks=[1])]
for settings in calls:
    arm.settings = settings
    arm.pipeline.branch_parallel = None
    seen.clear()
    alone, work = arm.stage("denoise")(), sum(seen)
    arm.pipeline.branch_parallel = BranchParallel()
    seen.clear()
    spread = arm.stage("denoise")()
    print(float((alone - spread).abs().max()), float(alone.std()), work, sum(seen))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(rank), str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    work = []
    for process in processes:
        printed, errors = process.communicate(timeout=500)
        assert process.returncode == 0, errors
        rows = [[float(value) for value in line.split()] for line in printed.splitlines()[-2:]]
        for difference, spread, *_ in rows:
            assert difference <= 1e-5 and spread > 0.1
        work.append([row[2:] for row in rows])
    # By call: samples that one process computes alone, and those of each of two. Guidance has two branches a step,
    # three with the perturbed one: an odd number.
    assert work == [[[6, 3], [9, 6]], [[6, 3], [9, 3]]]


def test_one_process_alone_is_told_how_to_start():
    with pytest.raises(RequestError, match="torchrun"):
        BranchParallel()
