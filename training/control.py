"""Asking a run to stop or to save: SIGTERM, SIGINT, or a file called `stop` or `save` in its folder."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any


class StopRequested(Exception):
    """Raised inside long work (caching, validation) when the run was asked to stop."""


class Control:
    """What the outside asks of a run; a context manager that listens to signals.

    Args:
        folder: the run's folder, where `save` and `stop` files are looked for.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._signalled = False
        self._previous: dict[int, Any] = {}
        self._save: Callable[[], None] | None = None
        self._ask: Callable[[bool], bool] = bool

    def __enter__(self) -> Control:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._signalled and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signalled = True

    def stop_requested(self) -> bool:
        """True after SIGTERM or SIGINT, or while a file `stop` lies in the folder."""
        return self._signalled or (self.folder / "stop").exists()

    def save_requested(self) -> bool:
        """True once for each file `save` laid into the folder; the file is taken away."""
        marker = self.folder / "save"
        if not marker.exists():
            return False
        marker.unlink(missing_ok=True)
        return True

    @contextmanager
    def saving_with(self, save: Callable[[], None], ask: Callable[[bool], bool] = bool) -> Iterator[None]:
        """Inside, `poll` also honours a `save` file.

        Args:
            save: writes a checkpoint.
            ask: whether a flag is set in any process, where several work in step.
        """
        self._save, self._ask = save, ask
        try:
            yield
        finally:
            self._save, self._ask = None, bool

    def poll(self) -> None:
        """Raise StopRequested if a stop was asked for; to be called often inside long work."""
        if self._save is not None and self._ask(self.save_requested()):
            self._save()
        if self._ask(self.stop_requested()):
            raise StopRequested

    def acknowledge(self) -> None:
        """Take the `stop` file away, so that the next start does not stop at once."""
        (self.folder / "stop").unlink(missing_ok=True)
