"""What MagCache must know of a model: how much the work of its blocks grows or shrinks over the noise levels.

Measured by vgen.engine.lossy.step_cache.measure_magnitudes, kept as JSON in the user's cache folder. Nothing heavy is
imported.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vgen.errors import CheckpointError, VgenError
from vgen.hub.find import model_hash
from vgen.io.files import cache_home, write_json


@dataclass(frozen=True)
class Magnitudes:
    """Ratios of the size of what all blocks add, each step to the one before.

    Attributes:
        sigmas: of the steps it was measured at, descending.
        ratios: one per step, above 0; the first is 1.
    """

    sigmas: tuple[float, ...]
    ratios: tuple[float, ...]

    def __post_init__(self) -> None:
        numbers = (*self.sigmas, *self.ratios)
        whole = (
            len(self.sigmas) == len(self.ratios) and all(map(math.isfinite, numbers)) and min(numbers, default=0) > 0
        )
        if not whole or list(self.sigmas) != sorted(set(self.sigmas), reverse=True):
            raise CheckpointError("magnitudes need descending sigmas with a ratio above 0 each: measure them again.")

    def at(self, sigmas: Sequence[float]) -> list[float]:
        """The ratios of another schedule: the size is taken as a function of sigma, log-linear between.

        Args:
            sigmas: of its steps, descending.
        Returns:
            One ratio per step; the first is 1.
        """
        sizes = [self._log_size(sigma) for sigma in sigmas]
        return [1.0, *(math.exp(after - before) for before, after in itertools.pairwise(sizes))][: len(sizes)]

    def _log_size(self, sigma: float) -> float:
        total, last = 0.0, self.sigmas[0]
        for at, ratio in zip(self.sigmas[1:], self.ratios[1:], strict=True):
            if sigma >= last:
                break
            share = min((last - sigma) / (last - at), 1.0)
            total, last = total + share * math.log(ratio), at
        return total


def magnitudes_file(folder: Path) -> Path:
    """Where a model's magnitudes are kept in the user's cache folder.

    Args:
        folder: of the model, or its single file.
    """
    return cache_home() / "magcache" / f"{model_hash(folder)}.json"


def find_magnitudes(folder: Path) -> Magnitudes:
    """A model's magnitudes, as they were measured on this machine.

    Raises:
        CheckpointError: there are none, or the file is damaged; with the command that measures them.
    """
    file = magnitudes_file(folder)
    if file.is_file():
        return read_magnitudes(file)
    raise CheckpointError(
        f"step_cache='magcache' needs the magnitudes of the model {folder.name!r}, which were not measured yet: run "
        "`vgen bench calibrate --model NAME|FOLDER` once, or use first-block or taylorseer."
    )


def read_magnitudes(file: Path) -> Magnitudes:
    """Magnitudes from a file of `write_magnitudes`.

    Raises:
        CheckpointError: it is damaged.
    """
    try:
        content: Any = json.loads(file.read_bytes())
        return Magnitudes(tuple(map(float, content["sigmas"])), tuple(map(float, content["ratios"])))
    except (OSError, ValueError, KeyError, TypeError, VgenError) as error:
        raise CheckpointError(f"{file} holds no magnitudes ({error}): delete it and measure them again.") from None


def write_magnitudes(magnitudes: Magnitudes, file: Path) -> None:
    """Write magnitudes as JSON; folders are made."""
    write_json(file, {"sigmas": magnitudes.sigmas, "ratios": magnitudes.ratios})
