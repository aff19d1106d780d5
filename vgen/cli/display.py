"""What a command is doing, said on stderr: one labelled bar in a terminal, few lines where it is piped.

A command that is shown (`showing`) tells of its phases and steps, and so does the pipeline that it runs: `tell` is the
pipeline's observer. Outside of `showing` nothing is said. Results go to stdout, through `say`.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TextIO

import typer

from vgen.cli import processes
from vgen.errors import counted, duration
from vgen.progress import Progress

_LINE_EVERY: Final = 5.0
"""Seconds between two lines about the same phase."""
_REFRESHES: Final = 4
"""Of the bar, per second."""
_RECENT: Final = 5
"""Steps that tell how long a step takes now: those of a second pass take longer than those of the first."""


class Display:
    """Shows progress.

    Args:
        stream: where to.
        terminal: whether it is one: then there is a bar.
        clock: seconds.
    """

    def __init__(self, stream: TextIO, terminal: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self._terminal = terminal
        self._bar: Any = None  # in a terminal from the first phase on
        self._part: tuple[str, int, int] | None = None
        self._first_part = 1
        self._last = Progress("loading")
        self._began: float | None = None
        self._steps: deque[float] = deque(maxlen=_RECENT + 1)
        self._num_steps = self._steps_before = 0  # of this part, and of those before
        self._said = -_LINE_EVERY
        self._is_new = True

    def set_part(self, name: str, number: int, count: int) -> None:
        """From now on the work is for one of several: a clip, a window."""
        if self._part is None:
            self._first_part = number
        elif self._part[1] != number:
            self._steps_before += self._num_steps
        self._part = (name, number, count) if count > 1 else None

    def tell(self, progress: Progress) -> None:
        """Take in where the work is."""
        now, before = self._clock(), self._last
        if progress.phase == "denoising":
            self._began = now if self._began is None else self._began
            if progress.step != before.step + 1 or before.phase != "denoising":
                self._steps.clear()
            self._steps.append(now)
            self._num_steps = progress.num_steps
        new = self._is_new or (progress.phase, progress.what) != (before.phase, before.what)
        self._last, self._is_new = progress, False
        if self._terminal:
            self._bar = _new_bar(self._stream) if self._bar is None else self._bar
            total = progress.num_steps or None
            self._bar.update(
                0, description=self._label(), total=total, completed=progress.step, detail=self._detail(now)
            )
            return
        in_first = self._part is None or self._part[1] == self._first_part
        if (new and in_first) or now - self._said >= _LINE_EVERY:
            detail = self._detail(now) or (counted(progress.num_steps, "step") if progress.num_steps else "")
            line = f"{self._label()}: {detail}" if detail else self._label()
            print(line, file=self._stream, flush=True)
            self._said = now

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, there is no bar that other output could run into."""
        if self._bar is None:
            yield
            return
        self._bar.stop()
        try:
            yield
        finally:
            self._bar.start()

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()

    def _label(self) -> str:
        part = "" if self._part is None else "{} {} of {}, ".format(*self._part)
        what = f" {self._last.what}" if self._last.what else ""
        return f"{part}{self._last.phase}{what}"

    def _detail(self, now: float) -> str:
        """Which step, and how long the rest takes, as far as steps have shown it."""
        step, num_steps = self._last.step, self._last.num_steps
        if not step:
            return ""
        seconds = self._seconds_left(now)
        left = f", {duration(max(1, round(seconds)))} left" if seconds else ""
        return f"step {step} of {num_steps}{left}"

    def _seconds_left(self, now: float) -> float | None:
        step, num_steps = self._last.step, self._last.num_steps
        done = self._steps_before + step
        if self._began is None or now <= self._began:
            return None
        per_step = (now - self._began) / done
        if len(self._steps) > 1:
            per_step = max(per_step, (self._steps[-1] - self._steps[0]) / (len(self._steps) - 1))
        later = 0 if self._part is None else self._part[2] - self._part[1]
        return per_step * (num_steps - step + later * num_steps)


_shown: Display | None = None


@contextmanager
def showing() -> Iterator[None]:
    """Inside, what is told is shown on stderr."""
    global _shown
    _shown = Display(sys.stderr, sys.stderr.isatty())
    try:
        yield
    finally:
        _shown.close()
        _shown = None


def tell(progress: Progress) -> None:
    """Show where the work is; an observer of pipelines."""
    if _shown is not None:
        _shown.tell(progress)


def set_part(name: str, number: int, count: int) -> None:
    """See Display."""
    if _shown is not None:
        _shown.set_part(name, number, count)


def say(text: str, err: bool = False) -> None:
    """Print a line to stdout, or to stderr."""
    if _shown is None:
        typer.echo(text, err=err)
        return
    with _shown.paused():
        typer.echo(text, err=err)


def starting(what: str) -> None:
    """Say on stderr, at once, what takes a while to begin; of several processes the first says it."""
    if processes.leads():
        typer.echo(what, err=True)


def _new_bar(stream: TextIO) -> Any:
    """A started bar with a label and one task, number 0."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.text import Text

    class Plain(TextColumn):
        """A field of the task as it is: names may hold brackets."""

        def render(self, task: Task) -> Text:
            return Text(str(task.description if self.text_format == "label" else task.fields["detail"]))

    columns: tuple[ProgressColumn, ...] = (Plain("label"), BarColumn(bar_width=30), Plain("detail"))
    console = Console(file=stream, force_terminal=True, markup=False)
    bar = Progress(*columns, console=console, transient=True, refresh_per_second=_REFRESHES, redirect_stdout=False)
    bar.add_task("starting", total=None, detail="")
    bar.start()
    return bar
