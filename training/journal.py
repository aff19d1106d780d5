"""The run's log: JSON lines in a file, and a progress bar or plain lines for whoever watches."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor


class Journal:
    """Collects scalars between two log lines and writes their means.

    Args:
        path: the log.jsonl of the run; lines after `start_step` are dropped, since they will be written again.
        start_step: steps already done.
        total_steps: steps of the whole run.
        silent: write and show nothing; for all processes of a run but the first.
    """

    def __init__(self, path: Path, start_step: int, total_steps: int, silent: bool = False) -> None:
        self.path = path
        self.silent = silent
        self.total_steps = total_steps
        self.start_step = start_step
        self._sums: dict[str, Tensor | float] = {}
        self._counts: dict[str, int] = {}
        self._began = self._window_began = time.perf_counter()
        self._samples = 0
        self.console = Console(quiet=silent)
        self._progress: Progress | None = None
        if not silent:
            path.parent.mkdir(parents=True, exist_ok=True)
            _drop_lines_after(path, start_step)

    def __enter__(self) -> Journal:
        if self.console.is_terminal and not self.silent:
            self._progress = Progress(
                TextColumn("[bold]step"), MofNCompleteColumn(), BarColumn(), TimeElapsedColumn(), TextColumn("left"),
                TimeRemainingColumn(), TextColumn("{task.fields[summary]}"), console=self.console,
            )  # fmt: skip
            self._task = self._progress.add_task("train", total=self.total_steps, completed=self.start_step, summary="")
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def add(self, logs: dict[str, Tensor], samples: int) -> None:
        """Take in a micro-batch's scalars."""
        for name, value in logs.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.detach()
            self._counts[name] = self._counts.get(name, 0) + 1
        self._samples += samples

    def advance(self, step: int) -> None:
        """Move the bar; `step` steps are done."""
        if self._progress is not None:
            self._progress.update(self._task, completed=step)

    def flush(self, step: int, **extra: float) -> None:
        """Write the means since the last flush as one line of the log."""
        now = time.perf_counter()
        means = {name: float(total) / self._counts[name] for name, total in self._sums.items()}
        speed = self._samples / max(1e-9, now - self._window_began)
        self.write({"step": step, **means, **extra, "samples_per_second": speed, "seconds": now - self._began})
        self._show(step, means, now)
        self._sums, self._counts, self._samples, self._window_began = {}, {}, 0, now

    def write(self, row: dict[str, Any]) -> None:
        """Append one row to the log file."""
        if self.silent:
            return
        with self.path.open("a") as file:
            file.write(json.dumps({key: _short(value) for key, value in row.items()}) + "\n")

    def say(self, text: str) -> None:
        """Show a line, above the bar where there is one."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _show(self, step: int, means: dict[str, float], now: float) -> None:
        summary = " ".join(f"{name} {value:.4f}" for name, value in list(means.items())[:4])
        if self._progress is not None:
            self._progress.update(self._task, completed=step, summary=summary)
            return
        done = max(1, step - self.start_step)
        left = (now - self._began) / done * (self.total_steps - step)
        self.say(f"step {step}/{self.total_steps} {summary} [{_clock(now - self._began)} gone, {_clock(left)} left]")


def _drop_lines_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if row.get("step", 0) <= step:
            kept.append(line + "\n")
    partial = path.with_name(path.name + ".tmp")
    partial.write_text("".join(kept))
    os.replace(partial, path)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def _short(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value
