"""The steps of several calls as one sequence, with the seconds that are left."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from vgen.events import Event, Observer, Preview, Step

_RECENT: Final = 5
"""Steps that show how long a step takes now: those of a second pass take longer than those of the first."""


class StepSequence:
    """An observer of calls, one after the other, that renumbers their steps and hands every event on.

    Args:
        on_event: is given the events.
        expected: steps of each call as far as they are known; None: as many as the call before has.
        clock: seconds.
    """

    def __init__(
        self,
        on_event: Observer,
        expected: Sequence[int | None] = (None,),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._on_event, self._later, self._clock = on_event, list(expected[1:]), clock
        self._done = self._current = 0  # steps of earlier calls, and of this one
        self._last = 0
        self._began: float | None = None
        self._times: deque[float] = deque(maxlen=_RECENT + 1)

    def next_call(self) -> None:
        """The events that follow are of the next call."""
        self._done += self._current
        self._current = 0
        del self._later[:1]

    def __call__(self, event: Event) -> None:
        """Take in an event, and hand it on."""
        if isinstance(event, Step):
            event = self._numbered(event)
        elif isinstance(event, Preview):
            event = replace(event, step=self._done + event.step, num_steps=self._total(event.num_steps))
        else:
            self._times.clear()  # what lies between two loops is not a step
        self._on_event(event)

    def _total(self, current: int) -> int:
        return self._done + current + sum(current if count is None else count for count in self._later)

    def _numbered(self, event: Step) -> Step:
        now, self._current = self._clock(), event.num_steps
        step, total = self._done + event.step, self._total(event.num_steps)
        self._began = now if self._began is None else self._began
        if step != self._last + 1:
            self._times.clear()
        self._times.append(now)
        self._last = step
        seconds = None
        if step and now > self._began:
            seconds = (now - self._began) / step
            if len(self._times) > 1:
                seconds = max(seconds, (self._times[-1] - self._times[0]) / (len(self._times) - 1))
            seconds *= total - step
        return Step(step, total, seconds)
