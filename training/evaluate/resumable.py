"""What an evaluation has measured so far, kept batch by batch, so that a killed one continues, and how much is left."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from itertools import starmap
from pathlib import Path
from typing import Any

from vgen.errors import OutputError, RequestError, duration

Row = dict[str, Any]
"""What is measured of one clip: numbers, truth values, lists of them; None where there is nothing to measure."""
Job = tuple[Any, ...]
"""Arguments of a function that measures one clip."""


class Measurements:
    """Measures clips batch by batch; what a file holds already is not measured again.

    Args:
        path: a JSON-lines file, made with the first batch; None keeps nothing.
        about: what the measurements depend on (model, seed, settings ...). A file about something else is refused.
        planned: clips of every measure to come, and what one of them costs, for the time left.
        say: called after every batch with what is done.
        clock: what seconds are read from.
        pool: processes that measure, while the next batch is made; None: this one does, in turn.
        place: where clips are made; stands in the file next to what was measured of them.
    Raises:
        RequestError: the file belongs to another evaluation.
    """

    def __init__(
        self,
        path: Path | None = None,
        about: Mapping[str, Any] | None = None,
        planned: Mapping[str, tuple[int, float]] | None = None,
        say: Callable[[str], None] = lambda text: None,
        clock: Callable[[], float] = time.monotonic,
        pool: Executor | None = None,
        place: str = "",
    ) -> None:
        self.path = path
        self.about = json.loads(json.dumps(about or {}))
        self.planned = dict(planned or {})
        self.say = say
        self.clock = clock
        self.pool = pool
        self.place = place
        self.seconds = 0.0
        """Spent on what is kept, those of earlier processes included."""
        self.places: dict[str, None] = {}
        """Where all that is kept was made, in this order."""
        self._kept: dict[str, dict[int, Row]] = {}
        self._cost_done = self._cost_now = 0.0
        self._began = clock()
        if path is not None and path.is_file():
            self._read(path)

    def rows(
        self, name: str, count: int, batch: int, make: Callable[[range], Iterable[Job]], measure: Callable[..., Row]
    ) -> list[Row]:
        """The rows of clips 0 to `count` - 1, in their order.

        Args:
            name: of the measure; one name, one meaning.
            count: clips.
            batch: how many at a time, at most; changes no clip.
            make: clips begin .. end - 1, as arguments of `measure`; called only for what is not kept yet.
            measure: a function of a module, since other processes may call it.
        Raises:
            OutputError: the file cannot be written.
        """
        cost = self.planned.get(name, (count, 1.0))[1]
        self.planned[name] = (count, cost)
        kept, since = self._kept.setdefault(name, {}), self.clock()
        there = sum(number in kept for number in range(count))
        self._cost_done += cost * there
        self.say(f"{name}: {there} of {count}, {self._left()}")
        waiting: deque[tuple[range, Iterator[Row]]] = deque()
        parts = _missing(kept, count, batch)
        while parts or waiting:
            if parts:
                part = parts.popleft()
                waiting.append((part, self.map(measure, make(part))))
            if not parts or self.pool is None or len(waiting) > 1:  # else they measure while the next ones are made
                part, rows = waiting.popleft()
                done, now = json.loads(json.dumps(list(rows))), self.clock()
                self._keep(name, part.start, done, now - since)
                since = now
                self._cost_now += cost * len(part)
                self._cost_done += cost * len(part)
                self.say(f"{name}: {sum(number in kept for number in range(count))} of {count}, {self._left()}")
        return [kept[number] for number in range(count)]

    def map(self, measure: Callable[..., Any], jobs: Iterable[Job]) -> Iterator[Any]:
        """What `measure` gives for each of the jobs, in their order; in the pool, they are all begun at once."""
        if self.pool is None:
            return starmap(measure, jobs)
        begun = [self.pool.submit(measure, *job) for job in jobs]
        return (one.result() for one in begun)

    def close(self) -> None:
        """Remove the file; to be called once its results are written elsewhere."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _left(self) -> str:
        total = sum(count * cost for count, cost in self.planned.values())
        said = f"{min(1.0, self._cost_done / max(total, 1e-9)):.0%} of all"
        if self._cost_now == 0:
            return said
        seconds = (self.clock() - self._began) * max(0.0, total - self._cost_done) / self._cost_now
        return f"{said}, {duration(seconds)} left"

    def _read(self, path: Path) -> None:
        """Take in what is kept; a line that was cut off ends it."""
        whole = 0
        for number, line in enumerate(path.read_bytes().splitlines(keepends=True)):
            try:
                entry = json.loads(line)
            except ValueError:
                break
            if not line.endswith(b"\n") or not isinstance(entry, dict):
                break
            if number == 0 and entry.get("about") != self.about:
                raise RequestError(self._other(path, entry.get("about")))
            if number:
                self._kept.setdefault(entry["name"], {}).update(enumerate(entry["rows"], entry["begin"]))
                self.seconds += entry["seconds"]
                self.places[entry["place"]] = None
            whole += len(line)
        with suppress(OSError), path.open("r+b") as file:
            file.truncate(whole)

    def _other(self, path: Path, about: Any) -> str:
        kept = about if isinstance(about, dict) else {}
        differing = [name for name in {**self.about, **kept} if self.about.get(name) != kept.get(name)]
        said = ", ".join(f"{name} {kept.get(name)!r} there, {self.about.get(name)!r} now" for name in sorted(differing))
        return f"{path} keeps the results of another evaluation ({said}); finish that one, or remove the file."

    def _keep(self, name: str, begin: int, rows: list[Row], seconds: float) -> None:
        self._kept[name].update(enumerate(rows, begin))
        self.seconds += seconds
        self.places[self.place] = None
        if self.path is None:
            return
        entry = {"name": name, "begin": begin, "rows": rows, "seconds": seconds, "place": self.place}
        entries: list[dict[str, Any]] = [entry]
        try:
            with self.path.open("a", encoding="utf-8") as file:
                if file.tell() == 0:
                    entries.insert(0, {"about": self.about})
                file.write("".join(json.dumps(entry) + "\n" for entry in entries))
        except OSError as error:
            raise OutputError(
                f"{self.path} could not be written ({error.strerror}); make room and run again."
            ) from None


def _missing(kept: Mapping[int, Row], count: int, batch: int) -> deque[range]:
    """Batches of the clips that are not there, each of clips that follow one another."""
    parts: deque[range] = deque()
    for number in range(count):
        if number in kept:
            continue
        if parts and parts[-1].stop == number and len(parts[-1]) < batch:
            parts[-1] = range(parts[-1].start, number + 1)
        else:
            parts.append(range(number, number + 1))
    return parts


def measuring_pool(workers: int) -> AbstractContextManager[Executor | None]:
    """Processes that measure; none where `workers` is 0.

    They are children of one that has loaded what measures, and never saw this one's GPU or threads.
    """
    if not workers:
        return nullcontext()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vgen.training.evaluate.evaluate"])
    return ProcessPoolExecutor(workers, context, initializer=_begin_measuring)


def _begin_measuring() -> None:
    """One thread each; an interrupt is for the process that evaluates, and without that one there is nothing to do."""
    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_it() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_it, daemon=True).start()
