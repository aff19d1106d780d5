"""Atomic checkpoints: written beside, hashed, made durable, then renamed; the newest valid one is found again.

A checkpoint is a folder `step-00001234` with
    model.safetensors      the trained weights
    ema.safetensors        their average
    optimizer.pt           the optimiser's state
    state.json             step, data fingerprint
    manifest.json          sha256 of every other file
Schedules and random draws are functions of the step, so nothing else is needed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vgen.errors import CheckpointError

_NAME = re.compile(r"step-(\d{8})")
_MANIFEST = "manifest.json"


@dataclass
class TrainingState:
    """Everything a run needs to go on as if it had never stopped."""

    step: int
    fingerprint: str
    model: dict[str, Tensor]
    ema: dict[str, Tensor]
    optimizer: dict[str, Any]


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        folder: where the `step-N` folders live.
        keep: how many of the newest stay; at least 2, so that a damaged one has a predecessor.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        if keep < 2:
            raise CheckpointError(
                f"checkpoint.keep={keep} is too few: a damaged checkpoint needs a predecessor; use 2 or more."
            )
        self.folder = folder
        self.keep = keep

    def save(self, state: TrainingState) -> Path:
        """Write `state`; returns its folder. A crash at any moment leaves the earlier checkpoints untouched."""
        self.folder.mkdir(parents=True, exist_ok=True)
        final = self.folder / f"step-{state.step:08d}"
        partial = final.with_name(final.name + ".tmp")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        save_file(_plain(state.model), partial / "model.safetensors")
        save_file(_plain(state.ema), partial / "ema.safetensors")
        torch.save(state.optimizer, partial / "optimizer.pt")
        described = {"step": state.step, "fingerprint": state.fingerprint}
        (partial / "state.json").write_text(json.dumps(described, indent=1))
        manifest = {path.name: file_hash(path) for path in sorted(partial.iterdir())}
        (partial / _MANIFEST).write_text(json.dumps(manifest, indent=1))
        for path in partial.iterdir():
            sync(path)
        sync(partial)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        sync(self.folder)
        self._prune()
        return final

    def newest(self) -> Path | None:
        """The newest checkpoint whose files all match their hashes; damaged ones are passed over."""
        for path in reversed(self.all()):
            if is_valid(path):
                return path
        return None

    def all(self) -> list[Path]:
        """Every finished checkpoint folder, oldest first, valid or not."""
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if _NAME.fullmatch(path.name))

    def load(self, path: Path, fingerprint: str | None = None) -> TrainingState:
        """Read a checkpoint.

        Args:
            path: its folder.
            fingerprint: of the data that training would go on with; None accepts any.

        Raises:
            CheckpointError: damaged, or written while training on other data.
        """
        if not is_valid(path):
            raise CheckpointError(f"{path} is damaged: its files do not match {_MANIFEST}; use an earlier checkpoint.")
        described = json.loads((path / "state.json").read_text())
        if fingerprint is not None and described["fingerprint"] != fingerprint:
            raise CheckpointError(
                f"{path} was trained on other data (fingerprint {described['fingerprint']}, now {fingerprint}): "
                "resuming would mix the two. Use another output_dir, or set accept_other_data=true if this is meant."
            )
        return TrainingState(
            step=described["step"],
            fingerprint=described["fingerprint"],
            model=load_file(path / "model.safetensors"),
            ema=load_file(path / "ema.safetensors"),
            optimizer=torch.load(path / "optimizer.pt", weights_only=True),
        )

    def _prune(self) -> None:
        for path in self.all()[: -self.keep]:
            shutil.rmtree(path, ignore_errors=True)


def is_valid(path: Path) -> bool:
    """True when the folder has a manifest and every file in it has the hash written there."""
    try:
        manifest = json.loads((path / _MANIFEST).read_text())
        return bool(manifest) and all(file_hash(path / name) == digest for name, digest in manifest.items())
    except (OSError, ValueError, AttributeError):
        return False


def file_hash(path: Path) -> str:
    """sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Make a file's or a folder's content durable (fsync)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _plain(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
