"""Atomic checkpoints: written, hashed and made durable, then renamed; the newest valid one is found again.

A checkpoint is a folder `step-00001234` with
    model.safetensors      the trained weights
    ema.safetensors        their average
    optimizer.safetensors  the optimiser's state
    state.json             step, data fingerprint, number of processes, recipe
    manifest.json          sha256 of every other file
Schedules and random draws are functions of the step, so nothing else is needed. Where the weights are sharded
(`sharding: fsdp`), `shard-*.safetensors`, written by torch.distributed.checkpoint, stand in for the first three files.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils._pytree import tree_leaves

from vgen.errors import CheckpointError, OutputError
from vgen.io.content_hash import read_hash
from vgen.io.files import publish
from vgen.training.checkpoint.optimizer_state import read_optimizer_state, write_optimizer_state

_NAME = re.compile(r"step-(\d{8})")
_MANIFEST = "manifest.json"


@dataclass
class TrainingState:
    """Everything a run needs to continue as if it had never stopped."""

    step: int
    fingerprint: str
    model: dict[str, Tensor]
    ema: dict[str, Tensor]
    optimizer: dict[str, Any]
    about: dict[str, Any] = field(default_factory=dict)


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
        self._damaged: set[Path] = set()

    def save(self, state: TrainingState) -> Path:
        """Write `state`; returns its folder. A crash at any moment leaves the earlier checkpoints untouched.

        Raises:
            OutputError: it could not be written; names the file, the bytes needed and what is still there.
        """
        model, ema = _plain(state.model), _plain(state.ema)
        needed = sum(leaf.nbytes for leaf in tree_leaves((model, ema, state.optimizer)) if isinstance(leaf, Tensor))
        with self.writing(state.step, needed) as partial:
            save_file(model, partial / "model.safetensors")
            save_file(ema, partial / "ema.safetensors")
            write_optimizer_state(state.optimizer, partial / "optimizer.safetensors")
            self.describe(partial, state.step, state.fingerprint, state.about)
        return self.path(state.step)

    def path(self, step: int) -> Path:
        """Where the checkpoint of `step` lies, or would."""
        return self.folder / f"step-{step:08d}"

    def part(self, step: int) -> Path:
        """Where the files of the checkpoint of `step` are until it is whole."""
        return self.folder / f"step-{step:08d}.part"

    @contextmanager
    def writing(self, step: int, needed: int) -> Iterator[Path]:
        """A folder to write a checkpoint's files to; when the block ends well it becomes the checkpoint of `step`.

        Args:
            step: steps done.
            needed: bytes that will be written, for the message when they do not fit.
        Raises:
            OutputError: the block, or making its files durable, failed for want of space or rights.
        """
        partial = self.part(step)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for left in (*self.folder.glob("*.part"), *self.folder.glob("step-*.tmp")):  # .tmp: of earlier versions
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            partial.mkdir()
            yield partial
            self._publish(partial, self.path(step))
        except (OSError, SafetensorError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise self._not_written(step, needed, error) from None

    def describe(self, partial: Path, step: int, fingerprint: str, about: dict[str, Any]) -> None:
        """Write state.json."""
        described = {"step": step, "fingerprint": fingerprint, **about}
        (partial / "state.json").write_text(json.dumps(described, indent=1))

    def _publish(self, partial: Path, final: Path) -> None:
        manifest = {path.name: read_hash(path) for path in sorted(partial.iterdir())}
        (partial / _MANIFEST).write_text(json.dumps(manifest, indent=1))
        publish(partial, final, overwrite=True)
        self._damaged.discard(final)
        self._prune()

    def _not_written(self, step: int, needed: int, error: Exception) -> OutputError:
        kept = self.newest()
        free = ""
        with contextlib.suppress(OSError):
            free = f", {shutil.disk_usage(self.folder).free:,} are free"
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        return OutputError(
            f"{self.path(step)} could not be written ({reason}): it needs {needed:,} bytes{free}. "
            + (f"{kept.name} is whole and will be resumed from" if kept else "There is no earlier checkpoint")
            + "; make room and run the same command again."
        )

    def newest(self) -> Path | None:
        """The newest checkpoint whose files all match their hashes; damaged ones are passed over."""
        for path in reversed(self.all()):
            if is_valid(path):
                return path
            self._damaged.add(path)
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
            fingerprint: of the data that training would continue with; None accepts any.

        Raises:
            CheckpointError: damaged, or written while training on other data.
        """
        described = self.check(path, fingerprint)
        if described.get("sharding", "none") != "none":
            raise CheckpointError(
                f"{path} is sharded (sharding: {described['sharding']}); resume it with that setting, or export it."
            )
        if (path / "optimizer.pt").exists():
            raise CheckpointError(
                f"{path} was written by an earlier version, with a pickled optimizer.pt, which is not read: begin "
                "again from its weights (objective.init, after exporting them with that version)."
            )
        return TrainingState(
            step=described["step"],
            fingerprint=described["fingerprint"],
            model=load_file(path / "model.safetensors"),
            ema=load_file(path / "ema.safetensors"),
            optimizer=read_optimizer_state(path / "optimizer.safetensors"),
            about=_about(described),
        )

    def check(self, path: Path, fingerprint: str | None = None) -> dict[str, Any]:
        """Compare a checkpoint with its hashes and with the data's fingerprint; returns what state.json says.

        Raises:
            CheckpointError: as `load` does.
        """
        if not is_valid(path):
            raise CheckpointError(f"{path} is damaged: its files do not match {_MANIFEST}; use an earlier checkpoint.")
        described: dict[str, Any] = json.loads((path / "state.json").read_text())
        if fingerprint is not None and described["fingerprint"] != fingerprint:
            raise CheckpointError(
                f"{path} was trained on other data (fingerprint {described['fingerprint']}, now {fingerprint}): "
                "resuming would mix the two. Use another output_dir, or set accept_other_data=true if this is meant."
            )
        return described

    def _prune(self) -> None:
        """Drop the oldest; those found damaged do not count as kept, and go as well."""
        whole = [path for path in self.all() if path not in self._damaged]
        for path in [*whole[: -self.keep], *self._damaged]:
            shutil.rmtree(path, ignore_errors=True)
        self._damaged.clear()


def is_valid(path: Path) -> bool:
    """True when the folder has a manifest and every file in it has the hash written there."""
    try:
        manifest = json.loads((path / _MANIFEST).read_text())
        return bool(manifest) and all(read_hash(path / name) == digest for name, digest in manifest.items())
    except (OSError, ValueError, AttributeError):
        return False


def _plain(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}


def _about(described: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in described.items() if name not in ("step", "fingerprint")}
