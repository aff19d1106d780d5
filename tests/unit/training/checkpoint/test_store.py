"""Checkpoints: complete or absent, and the newest valid one is found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from vgen.errors import CheckpointError, OutputError
from vgen.training.checkpoint import store as module
from vgen.training.checkpoint.store import CheckpointStore, TrainingState


def _state(step: int) -> TrainingState:
    weights = {"a.weight": torch.full((3, 2), float(step))}
    return TrainingState(
        step=step,
        fingerprint="data-1",
        model=weights,
        ema={"a.weight": weights["a.weight"] / 2},
        optimizer={"state": {0: {"exp_avg": torch.ones(3, 2) * step}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
    )


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    loaded = store.load(store.save(_state(7)), "data-1")
    assert loaded.step == 7
    assert torch.equal(loaded.model["a.weight"], torch.full((3, 2), 7.0))
    assert torch.equal(loaded.ema["a.weight"], torch.full((3, 2), 3.5))
    assert torch.equal(loaded.optimizer["state"][0]["exp_avg"], torch.full((3, 2), 7.0))


def test_the_newest_stay_and_are_found(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for step in (1, 2, 10):
        store.save(_state(step))
    assert [path.name for path in store.all()] == ["step-00000002", "step-00000010"]
    newest = store.newest()
    assert newest is not None
    assert newest.name == "step-00000010"


@pytest.mark.parametrize(
    "name", ["model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]
)
@pytest.mark.parametrize("harm", ["truncated", "missing", "changed"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path, name: str, harm: str) -> None:
    store = CheckpointStore(tmp_path)
    good, damaged = store.save(_state(1)), store.save(_state(2))
    file = damaged / name
    content = file.read_bytes()
    if harm == "missing":
        file.unlink()
    elif harm == "truncated":
        file.write_bytes(content[: len(content) // 2])
    else:
        file.write_bytes(content[:-3] + b"\x00\x01\x02")
    assert store.newest() == good
    with pytest.raises(CheckpointError, match="damaged"):
        store.load(damaged)


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path / "nothing").newest() is None


def test_a_crash_while_writing_leaves_the_old_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path)
    good = store.save(_state(1))

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_optimizer_state", full_disk)
        with pytest.raises(OutputError, match=r"step-00000002 could not be written .No space.*: it needs 72 bytes"):
            store.save(_state(2))
    assert store.newest() == good
    store.save(_state(2))
    assert [path.name for path in store.all()] == ["step-00000001", "step-00000002"]
    assert not list(tmp_path.glob("*.part"))


def test_other_data_is_refused(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    path = store.save(_state(1))
    with pytest.raises(CheckpointError, match="trained on other data"):
        store.load(path, "data-2")
    assert store.load(path, None).step == 1


def test_keeping_one_is_too_few(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="too few"):
        CheckpointStore(tmp_path, keep=1)


def test_a_pickled_optimiser_is_not_read(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    path = store.save(_state(1))
    (path / "optimizer.safetensors").rename(path / "optimizer.pt")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["optimizer.pt"] = manifest.pop("optimizer.safetensors")
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"pickled optimizer\.pt"):
        store.load(path)
