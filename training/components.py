"""What a run is made of besides its data: model, optimiser, average, meter; and putting a checkpoint back into them."""

from __future__ import annotations

import contextlib
import copy
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn

from vgen.engine.device import peak_flops
from vgen.errors import CheckpointError, OutputError
from vgen.training import sharding
from vgen.training.checkpoint.store import CheckpointStore, TrainingState
from vgen.training.cost.throughput import Meter, ShapeKey, flops_by_shape
from vgen.training.data.plan import BatchPlan, Source
from vgen.training.ema import Ema
from vgen.training.objectives.base import Objective
from vgen.training.optimizers import LearningRate, build_optimizer, load_optimizer_state
from vgen.training.recipe import Recipe

_LOCK = "lock"


@dataclass
class Parts:
    """Model, optimiser and what follows them, ready to train.

    Attributes:
        objective: what is trained, perhaps sharded.
        model: the objective as it is called: wrapped for mixed precision and several processes.
        export: where the objective is sharded, the first process's copy that is not, with untrained weights.
    """

    objective: Objective
    model: nn.Module
    optimizer: torch.optim.Optimizer
    learning_rate: LearningRate
    ema: Ema
    meter: Meter
    export: Objective | None

    def whole(self, store: CheckpointStore) -> tuple[Objective, Ema]:
        """The objective and its average with all weights in this process.

        Sharded ones are read from the newest checkpoint, without the other processes.
        """
        if self.export is None:
            return self.objective, self.ema
        newest = store.newest()
        if newest is None:
            raise CheckpointError(f"{store.folder} holds no checkpoint to export; train first.")
        ema = Ema(self.export)
        sharding.read(newest, self.export, ema, None, together=False)
        return self.export, ema


def checkpoint_activations(objective: Objective) -> None:
    """Let every model of an objective compute its activations again in the backward, instead of holding them."""
    for part in objective.children():
        enable = getattr(part, "enable_gradient_checkpointing", None)
        if enable is not None:
            enable()


def build_parts(
    recipe: Recipe, objective: Objective, accelerator: Accelerator, plan: BatchPlan, source: Source
) -> Parts:
    """Make everything that trains `objective`.

    Raises:
        RequestError: the recipe asks for what the objective or the processes cannot do.
    """
    if recipe.activation_checkpointing:
        checkpoint_activations(objective)
    meter = _meter(recipe, objective, accelerator, plan, source)
    export = None
    if recipe.sharding == "fsdp":
        if accelerator.is_main_process:
            export = copy.deepcopy(objective)
        objective.to(accelerator.device)
        sharding.shard(objective, accelerator, recipe.autocasts)
    optimizer = build_optimizer(objective, recipe.optimizer, objective.own_optimizers())
    learning_rate = LearningRate(optimizer, recipe.total_steps, recipe.schedule)
    if recipe.sharding == "fsdp":
        ema = Ema(objective, recipe.ema.limit)
        model: nn.Module = sharding.Autocast(objective, accelerator)
        return Parts(objective, model, optimizer, learning_rate, ema, meter, export)
    model, prepared = accelerator.prepare(objective, optimizer)
    ema = Ema(objective, recipe.ema.limit)
    return Parts(objective, model, prepared, learning_rate, ema, meter, None)


def _meter(recipe: Recipe, objective: Objective, accelerator: Accelerator, plan: BatchPlan, source: Source) -> Meter:
    device, world = accelerator.device, accelerator.num_processes
    flops: dict[ShapeKey, int] = {}
    if not accelerator.is_main_process:
        return Meter(objective, device, world)
    with contextlib.suppress(RuntimeError):  # an objective that looks at values cannot be counted: no utilisation then
        flops = flops_by_shape(objective, plan, source)
    peak = peak_flops(device, torch.bfloat16 if recipe.autocasts else torch.float32)
    return Meter(objective, device, world, peak, flops)


def resume_from(
    store: CheckpointStore, recipe: Recipe, parts: Parts, accelerator: Accelerator, fingerprint: str
) -> tuple[int, list[str]]:
    """Put the newest whole checkpoint back, if there is one.

    Returns:
        steps done, and what the user should know about it.
    Raises:
        CheckpointError: it belongs to other data, another model or base model, or another way of sharding.
    """
    newest = _agreed(store.newest() if accelerator.is_main_process else None, accelerator)
    if newest is None:
        return 0, []
    described = store.check(newest, None if recipe.accept_other_data else fingerprint)
    origin = described.get("origin") or parts.objective.origin
    if origin != parts.objective.origin and not recipe.accept_other_data:
        raise CheckpointError(
            f"{newest} was trained on another model than the one that lies in its place now (hash {origin[:16]}, now "
            f"{parts.objective.origin[:16]}): put that one back, or set accept_other_data=true if this is meant."
        )
    was = described.get("sharding", "none")
    notes = [f"resuming at step {described['step']} of {recipe.total_steps}", *_changes(described, recipe, accelerator)]
    if was != recipe.sharding:
        raise CheckpointError(
            f"{newest} was written with sharding: {was}, and the recipe says sharding: {recipe.sharding}; "
            f"resume it with sharding={was} (with any number of processes that divides the batch)."
        )
    if was == "fsdp":
        sharding.read(newest, parts.objective, parts.ema, parts.optimizer)
    else:
        restore(store.load(newest), parts.objective, parts.ema, parts.optimizer)
    return int(described["step"]), notes


def _agreed(newest: Path | None, accelerator: Accelerator) -> Path | None:
    if accelerator.num_processes == 1:
        return newest
    chosen: list[Any] = [newest]
    broadcast_object_list(chosen)
    return chosen[0]


def _changes(described: dict[str, Any], recipe: Recipe, accelerator: Accelerator) -> list[str]:
    """What is not as it was when the checkpoint was written: exactness ends there."""
    notes = []
    world = described.get("world", accelerator.num_processes)
    if world != accelerator.num_processes:
        notes.append(f"{accelerator.num_processes} processes now, {world} before: equal up to rounding from here on")
    before, now = described.get("recipe"), recipe.model_dump(mode="json", by_alias=True)
    harmless = {"output_dir", "every", "checkpoint", "trackers", "num_threads", "device", "sharding"}
    if before is not None:
        for content in (before, now):  # where the data lies does not matter; what it holds has a fingerprint
            for key in ("folder", "cache"):
                content.get("data", {}).pop(key, None)
        changed = sorted(name for name in now if name not in harmless and before.get(name, now[name]) != now[name])
        if changed:
            notes.append(f"the recipe changed since that checkpoint was written: {', '.join(changed)}")
    return notes


def restore(state: TrainingState, objective: Objective, ema: Ema, optimizer: torch.optim.Optimizer) -> None:
    """Put a checkpoint's tensors back where they were.

    Raises:
        CheckpointError: they are those of another model.
    """
    try:
        objective.load_state_dict(state.model)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise CheckpointError(f"The checkpoint of step {state.step} is of another model: {reason}") from None
    ema.load_state_dict(state.ema)
    load_optimizer_state(getattr(optimizer, "optimizer", optimizer), state.optimizer)  # accelerate's wrapper


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Inside, no other run can work in `folder`; the lock goes with the process, however it ends.

    The folder is made if it is not there, and removed again if a failure leaves nothing in it.

    Raises:
        OutputError: another run is at work there.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    if int(os.environ.get("RANK", "0")) != 0:
        yield
        return
    try:
        with _locked(folder):
            yield
    except BaseException:
        if made and {path.name for path in folder.iterdir()} == {_LOCK}:
            shutil.rmtree(folder, ignore_errors=True)
        raise


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(
                f"output_dir={folder} is in use by another run; stop that one (touch {folder / 'stop'}), or give "
                "another output_dir."
            ) from None
        except OSError:  # a file system without locks
            pass
        yield
