"""The run's log: JSON lines in a file, a progress bar or plain lines on the screen, and sheets of samples."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from vgen.errors import OutputError, duration
from vgen.io.files import write_text
from vgen.io.media.contact_sheet import contact_sheet

_SHOWN_MEANS = 4
_SHOWN = {
    "samples_per_second": "{:.3g} samples/s",
    "tokens_per_second": "{:.4g} tokens/s",
    "mfu": "MFU {:.0%}",
    "data_wait": "waiting {:.0%}",
    "peak_memory_gib": "{:.2f} GiB",
}


class Journal:
    """Collects scalars between two log lines and writes their means.

    Args:
        path: the log.jsonl of the run; lines after `start_step` are dropped, since they will be written again.
        start_step: steps already done.
        total_steps: steps of the whole run.
        silent: write and show nothing; for all processes of a run but the first.
        gather: collects a value of every process, where several take in scalars.
        track: called with every row as well: (values, step).
    """

    def __init__(
        self,
        path: Path,
        start_step: int,
        total_steps: int,
        silent: bool = False,
        gather: Callable[[Any], list[Any]] = lambda value: [value],
        track: Callable[[dict[str, float], int], None] = lambda values, step: None,
    ) -> None:
        self.path = path
        self.silent = silent
        self.gather = gather
        self.track = track
        self.total_steps = total_steps
        self.start_step = start_step
        self._sums: dict[str, Tensor | float] = {}
        self._counts: dict[str, int] = {}
        self._began = time.perf_counter()
        self.console = Console(quiet=silent, markup=False)
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

    def add(self, logs: dict[str, Tensor]) -> None:
        """Take in a micro-batch's scalars."""
        for name, value in logs.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.detach()
            self._counts[name] = self._counts.get(name, 0) + 1

    def advance(self, step: int) -> None:
        """Move the bar; `step` steps are done."""
        if self._progress is not None:
            self._progress.update(self._task, completed=step)

    def flush(self, step: int, rates: dict[str, float] | None = None, **extra: float) -> None:
        """Write the means since the last flush, over all processes, as one line of the log.

        Args:
            step: steps done.
            rates: of a `Meter`, also shown.
            extra: further values of the row.
        """
        now = time.perf_counter()
        means = self._means()
        rates = rates or {}
        self.write({"step": step, **means, **extra, **rates, "seconds": now - self._began})
        self._show(step, means, rates, now)
        self._sums, self._counts = {}, {}

    def _means(self) -> dict[str, float]:
        sums: dict[str, float] = {}
        counts: dict[str, int] = {}
        own = {name: (float(total), self._counts[name]) for name, total in self._sums.items()}
        for process in self.gather(own):
            for name, (total, count) in process.items():
                sums[name] = sums.get(name, 0.0) + total
                counts[name] = counts.get(name, 0) + count
        return {name: total / counts[name] for name, total in sums.items()}

    def write(self, row: dict[str, Any]) -> None:
        """Append one row to the log file, and tell the trackers.

        Raises:
            OutputError: the file cannot be written.
        """
        if self.silent:
            return
        line = json.dumps({key: _short(value) for key, value in row.items()}) + "\n"
        try:
            with self.path.open("a") as file:
                file.write(line)
        except OSError as error:
            raise OutputError(
                f"{self.path} could not be written ({error.strerror}): it needs {len(line)} bytes; make room and run "
                "the same command again."
            ) from None
        self.track({key: value for key, value in row.items() if isinstance(value, float)}, int(row["step"]))

    def say(self, text: str) -> None:
        """Show a line, above the bar where there is one."""
        self.console.print(text, highlight=False, soft_wrap=True)

    def _show(self, step: int, means: dict[str, float], rates: dict[str, float], now: float) -> None:
        summary = " ".join(f"{name} {value:.4f}" for name, value in list(means.items())[:_SHOWN_MEANS])
        if rates:
            summary += " | " + " ".join(_SHOWN[name].format(value) for name, value in rates.items())
        if self._progress is not None:
            self._progress.update(self._task, completed=step, summary=summary)
            return
        done = max(1, step - self.start_step)
        left = (now - self._began) / done * (self.total_steps - step)
        self.say(
            f"step {step}/{self.total_steps} {summary} [{duration(now - self._began)} gone, {duration(left)} left]"
        )


def save_sheet(path: Path, clips: Sequence[np.ndarray], labels: Sequence[str] | None = None) -> None:
    """Write clips as one PNG, one per row.

    Args:
        path: the file; its folder is made.
        clips: uint8 [F, H, W, 3] each.
        labels: one line above each clip.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(clips, labels=labels, scale=2).save(path)


def _drop_lines_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text().split("\n"):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if row.get("step", 0) <= step:
            kept.append(line + "\n")
    write_text(path, "".join(kept))


def _short(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value
