"""What tests/e2e/test_processes.py starts with torchrun: several jobs one after the other, to import only once.

python processes.py RECIPE [key=value ...] [+ cut RUN STEP] [+ list RUN] [+ RECIPE ...] ... [+ vgen WORD ...]

`vgen` is the command itself and comes last: it ends the processes.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import torch

from vgen.cli import main as command
from vgen.training.run import leave_processes, run_recipe


def cut(run: Path, step: int) -> None:
    """Make a run as it was after `step` steps; the first process does it."""
    if os.environ["RANK"] == "0":
        shutil.rmtree(run / "export")
        for path in (run / "checkpoints").iterdir():
            if int(path.name.removeprefix("step-")) > step:
                shutil.rmtree(path)
    torch.distributed.barrier()


def note_checkpoints(run: Path) -> None:
    """Write the names of a run's checkpoints into RUN/checkpoints.txt; the first process does it."""
    if os.environ["RANK"] == "0":
        names = sorted(path.name for path in (run / "checkpoints").iterdir())
        (run / "checkpoints.txt").write_text(" ".join(names))
    torch.distributed.barrier()


def main() -> None:
    """Do every job."""
    jobs: list[list[str]] = [[]]
    for word in sys.argv[1:]:
        if word == "+":
            jobs.append([])
        else:
            jobs[-1].append(word)
    for first, *rest in jobs:
        if first == "cut":
            cut(Path(rest[0]), int(rest[1]))
        elif first == "list":
            note_checkpoints(Path(rest[0]))
        elif first == "vgen":
            command(rest)
        else:
            run_recipe(first, rest)
    leave_processes()


if __name__ == "__main__":
    main()
