"""What bounds a model's clips, from its files: its scheduler, and what it was trained for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from vgen.hub.find import model_index
from vgen.io.files import read_json
from vgen.io.weights.single_file import SingleFile
from vgen.request.trained import Trained


def model_scheduler(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The configuration of a model's scheduler; empty where its folder has none.

    Raises:
        CheckpointError: it is not JSON.
    """
    if Path(folder).is_file():
        return dict(SingleFile.open(Path(folder)).scheduler)
    file = Path(folder) / "scheduler" / "scheduler_config.json"
    return read_json(file) if file.is_file() else {}


def model_trained(folder: str | os.PathLike[str]) -> Trained:
    """What a model states about its training, or its makers publish.

    Raises:
        CheckpointError: the statement makes no sense.
    """
    return Trained.read(model_index(folder) or {"convention": "ltx"})
