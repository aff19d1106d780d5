"""Killed, starved of disk, damaged or asked to stop, a run goes on as if nothing had happened.

The loop, the checkpoints and the data plan are the real ones; the model is one small layer, so that a hundred runs take
seconds. On Linux every system call that changes the disk is found by tracing the process, and killed at.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from vgen.errors import NonFiniteError, OutputError
from vgen.training.checkpoint.store import CheckpointStore, TrainingState
from vgen.training.components import build_parts, resume_from
from vgen.training.control import Control, StopRequested
from vgen.training.data.plan import Batch, BatchPlan, Draw, batches
from vgen.training.loop import Run, train
from vgen.training.nan_dump import read_dump, replay
from vgen.training.objectives.base import Objective
from vgen.training.randomness import Keys
from vgen.training.recipe import Recipe
from vgen.training.report.log import Journal

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

RECIPE: dict[str, Any] = {
    "name": "line",
    "objective": {"kind": "vae", "model": {}},
    "gradient_accumulation": 2,
    "stages": [{"steps": 6, "frames": {1: 1.0}, "batch": {1: 4}}],
    "optimizer": {"lr": 0.01},
    "every": {"log": 1, "checkpoint": 2, "validate": 3},
}


class Points:
    """Numbers by index."""

    fingerprint = "points"

    def size(self, num_frames: int) -> int:
        return 1000

    def load(self, draw: Draw) -> Batch:
        values = torch.tensor(draw.indices, dtype=torch.float32)[:, None] / 1000
        return {"points": values * torch.tensor([1.0, 2.0, 3.0]), "indices": torch.tensor(draw.indices)}


class Line(Objective):
    """A small layer that denoises points; `during_validation` is called between two polls of a validation."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layer = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3))
        self.during_validation: Callable[[], None] = lambda: None

    def loss(self, batch: Batch, keys: Keys) -> tuple[Tensor, dict[str, Tensor]]:
        noisy = batch["points"] + keys.normal("noise", batch["points"].shape)
        return (self.layer(noisy) - batch["points"]).square().mean(), {}

    def validate(self, step: int, folder: Path, control: Control) -> dict[str, float]:
        control.poll()
        self.during_validation()
        control.poll()
        return {"size": float(sum(value.square().sum() for value in self.parameters()))}

    def finish(self, folder: Path, dtype: torch.dtype, control: Control) -> dict[str, float]:
        raise NotImplementedError


def _run(
    folder: Path, prepare: Callable[[Run], None] = lambda run: None, **changes: Any
) -> tuple[bool, TrainingState | None]:
    """Train what RECIPE says in `folder`, from its newest checkpoint; returns whether it ended, and what it left."""
    recipe = Recipe.model_validate({**RECIPE, **changes})
    accelerator = Accelerator(cpu=True)
    objective, source = Line(), Points()
    plan = BatchPlan(recipe.stages, recipe.seed)
    store = CheckpointStore(folder / "checkpoints")
    parts = build_parts(recipe, objective, accelerator, plan, source)
    start, _ = resume_from(store, recipe, parts, accelerator, source.fingerprint)
    with Control(folder) as control, Journal(folder / "log.jsonl", start, recipe.total_steps) as journal:
        steps = batches(plan, source, start, recipe.gradient_accumulation, 0)
        run = Run(
            recipe, folder, accelerator, objective, parts.model, parts.optimizer, parts.learning_rate, parts.ema, steps,
            store, journal, control, parts.meter, source.fingerprint, start,
        )  # fmt: skip
        prepare(run)
        ended = train(run)
        control.acknowledge()
    newest = store.newest()
    return ended, None if newest is None else store.load(newest)


def _assert_same(first: TrainingState | None, second: TrainingState | None) -> None:
    assert first is not None and second is not None
    assert first.step == second.step
    for one, two in ((first.model, second.model), (first.ema, second.ema)):
        assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    moments = [state.optimizer["state"] for state in (first, second)]
    assert moments[0].keys() == moments[1].keys()
    assert all(
        torch.equal(moments[0][key][name], moments[1][key][name]) for key in moments[0] for name in moments[0][key]
    )


@pytest.fixture(scope="module", autouse=True)
def no_probe() -> Iterator[None]:
    """Leave out the fifth of a second in which a run measures the machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vgen.training.components.peak_flops", lambda device, dtype: 1e9)
        yield


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> TrainingState:
    """What a run that nothing happens to ends with."""
    ended, state = _run(tmp_path_factory.mktemp("whole"))
    assert ended and state is not None and state.step == 6
    return state


# Killing at every call that changes the disk

_CALLS = {
    "x86_64": {1, 18, 20, 74, 75, 76, 77, 82, 83, 84, 87, 263, 264, 316, 258},
    "aarch64": {64, 68, 66, 82, 83, 45, 46, 35, 38, 276, 34},
}
"""write, pwrite64, writev, fsync, fdatasync, truncate, ftruncate, rename*, mkdir*, rmdir, unlink*."""
_OPENS = {"x86_64": {257}, "aarch64": {56}}
"""openat, which counts where it opens for writing."""
_TRACEME, _SYSCALL, _SETOPTIONS, _INFO = 0, 24, 0x4200, 0x420E
_OPTIONS = 1 | 0x100000  # mark stops of system calls; end the traced process with the tracer
_LEFT, _KILLED = "left", "killed"


def _trace(action: Callable[[], None], kill_at: int | None) -> tuple[str, int]:
    """Run `action` in a fork and kill it where it enters its `kill_at`-th call that changes the disk.

    Returns:
        how it ended, and the number of such calls entered.
    """
    library = ctypes.CDLL(None, use_errno=True)
    library.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    child = os.fork()
    if child == 0:
        if library.ptrace(_TRACEME, 0, None, None) != 0:
            os._exit(77)
        os.kill(os.getpid(), signal.SIGSTOP)
        _in_child(action)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 77
        pytest.skip("processes cannot be traced here")
    library.ptrace(_SETOPTIONS, child, None, ctypes.c_void_p(_OPTIONS))
    entered, info, passed = 0, (ctypes.c_ubyte * 88)(), 0
    while True:
        library.ptrace(_SYSCALL, child, None, ctypes.c_void_p(passed))
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            return _LEFT, entered
        assert os.WIFSTOPPED(status), status
        passed = 0 if os.WSTOPSIG(status) in (signal.SIGTRAP | 0x80, signal.SIGTRAP) else os.WSTOPSIG(status)
        library.ptrace(_INFO, child, ctypes.c_void_p(88), ctypes.byref(info))
        if info[0] == 1 and _changes_the_disk(bytes(info)):
            if entered == kill_at:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return _KILLED, entered
            entered += 1


def _changes_the_disk(entry: bytes) -> bool:
    """Of a ptrace_syscall_info: op, then at byte 24 the call's number and its six arguments."""
    number, _, _, flags = (int.from_bytes(entry[at : at + 8], "little") for at in (24, 32, 40, 48))
    opens = number in _OPENS[platform.machine()] and bool(flags & (os.O_WRONLY | os.O_RDWR))
    return opens or number in _CALLS[platform.machine()]


def _in_child(action: Callable[[], None]) -> None:
    """Do it and leave without anything of pytest's."""
    try:
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 1)
            os.dup2(nothing.fileno(), 2)
        action()
        os._exit(0)
    except BaseException:
        os._exit(1)


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in _CALLS, reason="needs to trace a Linux process"
)
def test_killed_at_every_call_that_changes_the_disk(tmp_path: Path, uninterrupted: TrainingState) -> None:
    """Every one of them, with the checkpoints of steps 2 and 4 before it and that of step 6 half done."""
    before = tmp_path / "before"
    _run(before, lambda run: run.recipe.stages.__setitem__(0, run.recipe.stages[0].model_copy(update={"steps": 4})))
    shutil.copytree(before, tmp_path / "all")
    how, calls = _trace(lambda: _do(tmp_path / "all"), None)
    assert how == _LEFT
    _assert_same(_newest(tmp_path / "all"), uninterrupted)
    assert calls > 40
    print(f"{calls} calls that change the disk")
    for kill_at in range(calls):
        folder = tmp_path / f"killed-{kill_at}"
        shutil.copytree(before, folder)
        how, _ = _trace(lambda folder=folder: _do(folder), kill_at)
        assert how == _KILLED
        kept = _newest(folder)
        assert kept is not None and kept.step in (4, 6)
        _assert_goes_on(folder, uninterrupted)


def _do(folder: Path) -> None:
    _run(folder)


def _assert_goes_on(folder: Path, uninterrupted: TrainingState) -> None:
    ended, state = _run(folder)
    assert ended
    _assert_same(state, uninterrupted)
    kept = CheckpointStore(folder / "checkpoints").all()
    assert [path.name for path in kept][-1] == "step-00000006" and len(kept) >= 2
    assert not list((folder / "checkpoints").glob("*.part"))
    steps = [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines()]
    assert sorted(set(steps)) == [1, 2, 3, 4, 5, 6]


def _newest(folder: Path) -> TrainingState | None:
    store = CheckpointStore(folder / "checkpoints")
    newest = store.newest()
    return None if newest is None else store.load(newest)


def test_killed_at_random_times(tmp_path: Path, uninterrupted: TrainingState) -> None:
    """Again and again until the run is done; the seed is printed, and a number in VGEN_KILL_SEED repeats it.

    A run that is done before it is met is begun anew, and met sooner.
    """
    seed = int(os.environ.get("VGEN_KILL_SEED", random.SystemRandom().randrange(10**6)))
    print(f"VGEN_KILL_SEED={seed}")
    chance, folder, killed, longest = random.Random(seed), tmp_path / "run", 0, 0.4
    for _ in range(60):
        child = os.fork()
        if child == 0:
            _in_child(lambda: _do(folder))
        time.sleep(chance.uniform(0, longest))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        killed += os.WIFSIGNALED(status)
        newest = _newest(folder)
        if newest is None or newest.step < 6:
            continue
        if killed:
            break
        shutil.rmtree(folder)
        longest /= 2
    assert killed
    _assert_goes_on(folder, uninterrupted)


# A disk that is full


@pytest.mark.parametrize("room", [0, 200, 600, 1500])
def test_a_full_disk_leaves_the_last_checkpoint_and_says_what_it_needed(
    tmp_path: Path, uninterrupted: TrainingState, room: int
) -> None:
    """Files may not grow beyond `room` bytes while checkpoint 4 is written; the log may."""
    folder = tmp_path / "run"
    store_save = CheckpointStore.save

    def save(self: CheckpointStore, state: TrainingState) -> Path:
        if state.step < 4:
            return store_save(self, state)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
        try:
            return store_save(self, state)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CheckpointStore, "save", save)
        with pytest.raises(OutputError, match=r"step-00000004 could not be written .*needs 960 bytes.*step-00000002"):
            _run(folder)
    kept = _newest(folder)
    assert kept is not None and kept.step == 2
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-00000002"]
    _assert_goes_on(folder, uninterrupted)


@pytest.mark.parametrize("harm", ["truncated", "flipped", "missing"])
def test_a_damaged_file_sends_the_run_back_to_the_one_before(
    tmp_path: Path, uninterrupted: TrainingState, harm: str
) -> None:
    folder = tmp_path / "run"
    _run(folder)
    file = folder / "checkpoints" / "step-00000006" / "ema.safetensors"
    content = bytearray(file.read_bytes())
    content[-7] ^= 1
    if harm == "missing":
        file.unlink()
    else:
        file.write_bytes(content if harm == "flipped" else content[:-9])
    kept = _newest(folder)
    assert kept is not None and kept.step == 4
    _assert_goes_on(folder, uninterrupted)


def test_two_whole_checkpoints_stay_when_a_damaged_one_was_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    _run(folder)
    (folder / "checkpoints" / "step-00000006" / "state.json").write_text("{")
    _run(folder, every={"log": 1, "checkpoint": 5, "validate": 0})
    store = CheckpointStore(folder / "checkpoints")
    assert [path.name for path in store.all()] == ["step-00000005", "step-00000006"]
    assert all(store.load(path).step for path in store.all())


# Asked to stop or to save


@pytest.mark.parametrize("how", ["stop", "sigterm"])
def test_a_stop_within_validation_saves_and_goes_on(tmp_path: Path, uninterrupted: TrainingState, how: str) -> None:
    folder = tmp_path / "run"

    def ask() -> None:
        (folder / "stop").touch() if how == "stop" else os.kill(os.getpid(), signal.SIGTERM)

    ended, state = _run(folder, lambda run: setattr(run.objective, "during_validation", ask))
    assert not ended and state is not None and state.step == 3
    _assert_goes_on(folder, uninterrupted)


def test_a_save_within_validation_keeps_the_weights_and_not_their_average(
    tmp_path: Path, uninterrupted: TrainingState
) -> None:
    folder, saved = tmp_path / "run", []

    def prepare(run: Run) -> None:
        def ask() -> None:
            (folder / "save").touch()

        run.objective.during_validation = ask
        save = run.store.save
        run.store.save = lambda state: saved.append(state.step) or save(state)

    _run(folder, prepare)
    assert 3 in saved and saved.count(2) == 1
    for path in (folder / "checkpoints").iterdir():
        if path.name != "step-00000003":
            shutil.rmtree(path)
    _assert_goes_on(folder, uninterrupted)


def test_a_stop_between_micro_batches_gives_the_step_up(tmp_path: Path, uninterrupted: TrainingState) -> None:
    folder = tmp_path / "run"

    def prepare(run: Run) -> None:
        loss = run.objective.loss

        def stopping(batch: Batch, keys: Keys) -> tuple[Tensor, dict[str, Tensor]]:
            if keys.step == 3 and keys.micro == 0:
                (folder / "stop").touch()
            return loss(batch, keys)

        run.objective.loss = stopping

    ended, state = _run(folder, prepare)
    assert not ended and state is not None and state.step == 3
    _assert_goes_on(folder, uninterrupted)


def test_a_stop_within_caching_keeps_what_was_encoded() -> None:
    """See tests/unit/training/test_captioned.py, where the cache is; here: a poll raises, and does so again."""
    control = Control(Path("/nonexistent"))
    control._signalled = True
    for _ in range(2):
        with pytest.raises(StopRequested):
            control.poll()


# NaN and infinity


def test_what_is_not_finite_stops_before_the_step_and_can_be_met_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def prepare(run: Run) -> None:
        before_step = run.objective.before_step

        def grow(step: int, ema: Any) -> None:
            before_step(step, ema)
            if step == 3:
                with torch.no_grad():
                    run.objective.layer[2].weight.mul_(1e30)

        run.objective.before_step = grow

    with pytest.raises(NonFiniteError, match=r"step=3: loss=inf.*vgen train replay .*nonfinite-step-00000003"):
        _run(folder, prepare)
    kept = _newest(folder)
    assert kept is not None and kept.step == 2
    dump = folder / "nonfinite-step-00000003"
    described = read_dump(dump)
    again = replay(dump, Line(), described, torch.device("cpu"), described["dtype"])
    assert again.loss == described["loss"] == float("inf")
    assert str(again.grad_norm) == str(described["grad_norm"])
    assert "layer.0.weight" in again.parameters
