"""What tests/e2e/test_parallel_commands.py starts with torchrun: several commands one after the other, to import once.

python commands.py WORD ... [+ WORD ...] ...

The word BREAK in front of a command breaks process 1 in the second step.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from vgen.cli import main
from vgen.jobs import processes


def run(words: list[str]) -> None:
    """One command, as `vgen` does it; leaves if it fails."""
    try:
        main(words)
    except SystemExit as leaving:
        if leaving.code:
            raise


def break_one() -> None:
    """From now on process 1 fails in the second step."""
    spread = processes.spread

    def broken(pipe: Any, request: Any) -> None:
        spread(pipe, request)
        check = pipe._check_finite

        def fail(tokens: Any, step: Any) -> None:
            if os.environ["RANK"] == "1" and step.index == 1:
                raise MemoryError("on purpose")
            check(tokens, step)

        pipe._check_finite = fail

    processes.spread = broken


if __name__ == "__main__":
    jobs: list[list[str]] = [[]]
    for word in sys.argv[1:]:
        if word == "+":
            jobs.append([])
        elif word == "BREAK":
            jobs[-1] = ["BREAK"]
        else:
            jobs[-1].append(word)
    for job in jobs:
        if job[0] == "BREAK":
            break_one()
        run(job[job[0] == "BREAK" :])
