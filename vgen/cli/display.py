"""What a command is doing, said on stderr: one labelled bar in a terminal, few lines where it is piped, or JSON lines.

A command that is shown (`showing`) renders the events of `vgen.events`: `show` is the observer of jobs. Outside of
`showing` only notes and results are said. Results go to stdout, through `say`.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Literal, TextIO

import typer

from vgen.errors import RequestError, UntrainedWarning, VgenError, bytes_text, counted, duration
from vgen.events import (
    Cancelled,
    Decoding,
    Done,
    Encoding,
    Event,
    Failed,
    Loading,
    Note,
    Part,
    Preview,
    Reading,
    Step,
    Writing,
    as_json,
)
from vgen.jobs import processes

_LINE_EVERY: Final = 5.0
"""Seconds between two lines about the same phase."""
_REFRESHES: Final = 4
"""Of the bar, per second."""
_PHASES: Final = (Reading, Loading, Encoding, Step, Decoding, Writing)
MODES: Final = ("bar", "jsonl", "none")
"""What --progress takes."""
Mode = Literal["bar", "jsonl", "none"]


class Said(SystemExit):
    """Leaves with an exit code whose cause was said already."""


class Display:
    """Shows the phases of a job, a bar in a terminal and else lines.

    Args:
        stream: where to.
        terminal: whether it is one: then there is a bar.
        clock: seconds.
    """

    def __init__(self, stream: TextIO, terminal: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock, self._terminal = stream, clock, terminal
        self._bar: Any = None  # in a terminal from the first phase on
        self._part: Part | None = None
        self._first_part = 1
        self._label, self._step = "", Step(0, 0)
        self._said_at = -_LINE_EVERY

    def show(self, event: Event) -> None:
        """Render an event."""
        if isinstance(event, Part):
            self._first_part = event.number if self._part is None else self._first_part
            self._part = event
        elif isinstance(event, _PHASES):
            self._show_phase(event)

    def _show_phase(self, event: Event) -> None:
        self._step = event if isinstance(event, Step) else Step(0, 0)
        part = "" if self._part is None else f"{self._part.kind} {self._part.number} of {self._part.count}, "
        what = getattr(event, "what", "")
        label = f"{part}{'denoising' if isinstance(event, Step) else event.name}{' ' if what else ''}{what}"
        before, self._label = self._label, label
        if self._terminal:
            self._bar = _new_bar(self._stream) if self._bar is None else self._bar
            total = self._step.num_steps or None
            self._bar.update(0, description=label, total=total, completed=self._step.step, detail=self._detail())
            return
        now, in_first = self._clock(), self._part is None or self._part.number == self._first_part
        if (label != before and in_first) or now - self._said_at >= _LINE_EVERY:
            detail = self._detail() or (counted(self._step.num_steps, "step") if self._step.num_steps else "")
            print(f"{label}: {detail}" if detail else label, file=self._stream, flush=True)
            self._said_at = now

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

    def _detail(self) -> str:
        """Which step, and how long the rest takes, as far as steps have shown it."""
        step, left = self._step, self._step.seconds_left
        if not step.step:
            return ""
        return f"step {step.step} of {step.num_steps}" + (f", {duration(max(1, round(left)))} left" if left else "")


class JsonLines:
    """Writes each event as one JSON object per line.

    Args:
        stream: where to.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream, self.has_ended = stream, False

    def show(self, event: Event) -> None:
        """Write an event."""
        if isinstance(event, Preview):
            return
        self.has_ended = isinstance(event, (Failed, Cancelled))
        print(json.dumps(as_json(event), ensure_ascii=False), file=self._stream, flush=True)


_shown: Display | JsonLines | None = None


@contextmanager
def showing(mode: str = "bar") -> Iterator[None]:
    """Inside, events are shown on stderr.

    Args:
        mode: "bar"; "jsonl", one JSON object per event and nothing else, errors included; or "none".
    Raises:
        RequestError: another mode.
        Said: an error, or an interrupt, that was written as JSON.
    """
    global _shown
    if mode not in MODES:
        raise RequestError(f"progress={mode!r:.40} is not known: use {', '.join(MODES[:-1])} or {MODES[-1]}.")
    if mode == "jsonl":
        _shown = JsonLines(sys.stderr)
    elif mode == "bar":
        _shown = Display(sys.stderr, sys.stderr.isatty())
    try:
        yield
    except (VgenError, KeyboardInterrupt) as error:
        if not isinstance(_shown, JsonLines) or processes.count() > 1:  # several: `together` says it, once
            raise
        interrupted = isinstance(error, KeyboardInterrupt)
        code = 130 if not isinstance(error, VgenError) else error.exit_code
        if not _shown.has_ended:
            _shown.show(Cancelled() if interrupted else Failed(str(error), code))
        raise Said(code) from None
    finally:
        if isinstance(_shown, Display):
            _shown.close()
        _shown = None


def show(event: Event) -> None:
    """Show an event; notes and what is done go to stdout as well. An observer of jobs."""
    if _shown is not None:
        _shown.show(event)
    if isinstance(event, Note):
        say(event.text)
    elif isinstance(event, Done):
        enlarged = f", written {event.scale} times as large" if event.scale > 1 else ""
        say(
            f"{event.path}: {counted(event.num_frames, 'frame')} of {event.width} x {event.height} at "
            f"{event.frame_rate:g} fps{enlarged}, {bytes_text(event.num_bytes)}, made in {duration(event.seconds)}, "
            f"seed {event.seed}, model {event.model}"
        )


def warn(text: str, source: str = "note") -> None:
    """Say a warning on stderr."""
    if isinstance(_shown, JsonLines):
        _shown.show(Note(text))
    else:
        say(f"{source}: {text}", err=True)


@contextmanager
def notes_of_warnings() -> Iterator[None]:
    """Inside, each `UntrainedWarning` is said at once and only once."""
    messages: set[str] = set()
    show_warning = warnings.showwarning

    def say_once(message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> None:
        if not issubclass(category, UntrainedWarning):
            show_warning(message, category, *rest, **named)
        elif str(message) not in messages and processes.leads():
            messages.add(str(message))
            warn(str(message))

    with warnings.catch_warnings():
        warnings.simplefilter("always", UntrainedWarning)
        warnings.showwarning = say_once
        yield


def say(text: str, err: bool = False) -> None:
    """Print a line to stdout, or to stderr."""
    if not isinstance(_shown, Display):
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
