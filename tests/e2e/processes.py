"""What tests/e2e/test_processes.py starts with torchrun: several recipes one after the other, to import only once.

python processes.py RECIPE [key=value ...] [+ RECIPE [key=value ...]] ...
"""

from __future__ import annotations

import sys

from vgen.training.run import leave_processes, run_recipe


def main() -> None:
    """Run every recipe."""
    jobs: list[list[str]] = [[]]
    for word in sys.argv[1:]:
        if word == "+":
            jobs.append([])
        else:
            jobs[-1].append(word)
    for recipe, *overrides in jobs:
        run_recipe(recipe, overrides)
    leave_processes()


if __name__ == "__main__":
    main()
