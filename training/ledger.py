"""What an evaluation has measured so far: kept batch by batch, so that a killed one goes on, and how much is left."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from vgen.errors import OutputError, RequestError

Row = dict[str, Any]
"""What is measured of one clip: numbers, truth values, lists of them; None where there is nothing to measure."""


class Ledger:
    """Measures clips batch by batch; what a file holds already is not measured again.

    Args:
        path: a JSON-lines file, made with the first batch; None keeps nothing.
        about: what the measurements depend on (model, seed, settings ...). A file about something else is refused.
        expected: clips of every measure that is to come, and what one of them costs, for the time left.
        say: told after every batch what is done.
        clock: what seconds are read from.
    Raises:
        RequestError: the file belongs to another evaluation.
    """

    def __init__(
        self,
        path: Path | None = None,
        about: Mapping[str, Any] | None = None,
        expected: Mapping[str, tuple[int, float]] | None = None,
        say: Callable[[str], None] = lambda text: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = path
        self.about = json.loads(json.dumps(about or {}))
        self.expected = dict(expected or {})
        self.say = say
        self.clock = clock
        self.seconds = 0.0
        """Spent on what is kept, those of earlier processes included."""
        self._kept: dict[tuple[str, int], list[Row]] = {}
        self._cost_done = self._cost_now = 0.0
        self._began = clock()
        if path is not None and path.is_file():
            self._read(path)

    def rows(self, name: str, count: int, batch: int, make: Callable[[range], list[Row]]) -> list[Row]:
        """The rows of clips 0 to `count` - 1, in their order.

        Args:
            name: of the measure; one name, one meaning.
            count: clips.
            batch: how many at a time.
            make: measures clips begin .. end - 1; called only for what is not kept yet.
        Raises:
            OutputError: the file cannot be written.
        """
        cost = self.expected.get(name, (count, 1.0))[1]
        self.expected[name] = (count, cost)
        found: list[Row] = []
        for begin in range(0, count, batch):
            part = range(begin, min(begin + batch, count))
            kept = self._kept.get((name, begin))
            if kept is None or len(kept) != len(part):
                began = self.clock()
                kept = json.loads(json.dumps(make(part)))
                self._keep(name, begin, kept, self.clock() - began)
                self._cost_now += cost * len(part)
            self._cost_done += cost * len(part)
            found += kept
            self.say(f"{name}: {part.stop} of {count}, {self._left()}")
        return found

    def close(self) -> None:
        """Remove the file; to be called once its results are written elsewhere."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _left(self) -> str:
        total = sum(count * cost for count, cost in self.expected.values())
        said = f"{min(1.0, self._cost_done / max(total, 1e-9)):.0%} of all"
        if self._cost_now == 0:
            return said
        seconds = (self.clock() - self._began) * max(0.0, total - self._cost_done) / self._cost_now
        minutes, rest = divmod(int(seconds), 60)
        return f"{said}, {minutes // 60}:{minutes % 60:02d}:{rest:02d} left"

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
                self._kept[entry["name"], entry["begin"]] = entry["rows"]
                self.seconds += entry["seconds"]
            whole += len(line)
        with suppress(OSError), path.open("r+b") as file:
            file.truncate(whole)

    def _other(self, path: Path, about: Any) -> str:
        kept = about if isinstance(about, dict) else {}
        differing = [name for name in {**self.about, **kept} if self.about.get(name) != kept.get(name)]
        said = ", ".join(f"{name} {kept.get(name)!r} there, {self.about.get(name)!r} now" for name in sorted(differing))
        return f"{path} keeps the results of another evaluation ({said}); finish that one, or remove the file."

    def _keep(self, name: str, begin: int, rows: list[Row], seconds: float) -> None:
        self._kept[name, begin] = rows
        self.seconds += seconds
        if self.path is None:
            return
        entries: list[dict[str, Any]] = [{"name": name, "begin": begin, "rows": rows, "seconds": seconds}]
        try:
            with self.path.open("a", encoding="utf-8") as file:
                if file.tell() == 0:
                    entries.insert(0, {"about": self.about})
                file.write("".join(json.dumps(entry) + "\n" for entry in entries))
        except OSError as error:
            raise OutputError(
                f"{self.path} could not be written ({error.strerror}); make room and run again."
            ) from None
