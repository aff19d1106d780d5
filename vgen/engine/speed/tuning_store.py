"""What was measured once, remembered: in memory, and in autotune.json of the cache folder.

The file is a help, never a need: one that is damaged, unreadable or of another make counts as empty and is
replaced, and where nothing can be written, memory has to do.
"""

from __future__ import annotations

import json
import logging
import math
import platform
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final

import torch

from vgen.errors import OutputError
from vgen.io.files import cache_home, write_json
from vgen.version import __version__

logger = logging.getLogger(__name__)

SCHEMA: Final = 1
_LARGEST: Final = 4 << 20  # bytes of a file that can be ours


@dataclass(frozen=True)
class Measured:
    """What was chosen, and the seconds of everything that was timed for it."""

    choice: str
    seconds: dict[str, float] = field(default_factory=dict)


class TuningStore:
    """Choices by key.

    Args:
        path: of the file; None keeps everything in memory.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._known: dict[str, Measured] | None = None

    def get(self, key: str) -> Measured | None:
        """What was remembered under a key, None if nothing was."""
        if self._known is None:
            self._known = self._read()
        return self._known.get(key)

    def put(self, key: str, measured: Measured) -> None:
        """Remember; what other processes have written meanwhile is kept."""
        self.get(key)
        self._known = {**self._read(), **(self._known or {}), key: measured}
        if self.path is None:
            return
        entries = {name: {"choice": one.choice, "seconds": one.seconds} for name, one in sorted(self._known.items())}
        try:
            write_json(self.path, {"schema": SCHEMA, "entries": entries})
        except OutputError as error:
            logger.info("What was measured is not kept on disk: %s", error)
            self.path = None

    def _read(self) -> dict[str, Measured]:
        if self.path is None:
            return {}
        try:
            if self.path.stat().st_size > _LARGEST:
                return {}
            data = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        if not isinstance(data, dict) or data.get("schema") != SCHEMA or not isinstance(data.get("entries"), dict):
            return {}
        read = {key: _measured(value) for key, value in data["entries"].items()}
        return {key: value for key, value in read.items() if value is not None}


def _measured(value: Any) -> Measured | None:
    if not isinstance(value, dict) or not isinstance(value.get("choice"), str):
        return None
    seconds = value.get("seconds")
    if not isinstance(seconds, dict) or not all(
        isinstance(number, (int, float)) and math.isfinite(number) and number > 0 for number in seconds.values()
    ):
        return None
    return Measured(value["choice"], {name: float(number) for name, number in seconds.items()})


@cache
def shared_store() -> TuningStore:
    """The store of this process, on disk."""
    return TuningStore(cache_home() / "autotune.json")


def key_of(kind: str, device: torch.device, *what: object) -> str:
    """A key that tells apart everything that a time depends on: the device, the versions, and `what`."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{_processor()}, {torch.get_num_threads()} threads"
    return " | ".join([kind, name, f"torch {torch.__version__}", f"vgen {__version__}", *(str(part) for part in what)])


@cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def bucket(count: int) -> int:
    """The smallest 2^k or 1.5 * 2^k that is not below `count`: sizes that share a choice."""
    power = 1 << max(count - 1, 0).bit_length()
    return power * 3 // 4 if power >= 4 and count <= power * 3 // 4 else power
