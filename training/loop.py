"""The training loop; there is no other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from vgen.errors import NonFiniteError
from vgen.training import sharding
from vgen.training.checkpoint.store import CheckpointStore, TrainingState
from vgen.training.control import Control, StopRequested
from vgen.training.cost.throughput import Meter
from vgen.training.data.plan import Batch
from vgen.training.ema import Ema
from vgen.training.nan_dump import layer_seed, write_dump
from vgen.training.objectives.base import Objective
from vgen.training.optimizers import LearningRate
from vgen.training.randomness import Keys
from vgen.training.recipe import Recipe
from vgen.training.report.log import Journal


@dataclass
class Run:
    """The parts of a run, built by `vgen.training.run`."""

    recipe: Recipe
    folder: Path
    accelerator: Accelerator
    objective: Objective
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    learning_rate: LearningRate
    ema: Ema
    batches: Iterator[Batch]
    store: CheckpointStore
    journal: Journal
    control: Control
    meter: Meter
    fingerprint: str
    start_step: int
    micro_batches: list[Batch] = field(default_factory=list)

    @property
    def is_sharded(self) -> bool:
        """Whether each process holds a part of the weights only."""
        return self.recipe.sharding == "fsdp"

    def any_process(self, flag: bool) -> bool:
        """See `any_process`."""
        return any_process(self.accelerator, flag)


def train(run: Run) -> bool:
    """Run from `start_step` to the end of the recipe; returns False when asked to stop before it."""
    every, last = run.recipe.every, run.recipe.total_steps
    for step in range(run.start_step, last):
        before = _version(run.objective)
        run.objective.before_step(step, run.ema)
        rate = run.learning_rate.apply(step)
        loss = _accumulate_gradients(run, step, may_leave=_version(run.objective) == before)
        if loss is None:
            if step > run.start_step:
                save(run, step)
            return False
        norm = _clip_gradients(run)
        _check_finite(run, step, loss, norm)
        run.optimizer.step()
        run.ema.update(run.objective, step)

        done = step + 1
        run.journal.advance(done)
        if done % every.log == 0 or done == last:
            run.journal.flush(done, run.meter.read(), learning_rate=rate, grad_norm=float(norm))
        stop = run.any_process(run.control.stop_requested())
        with run.meter.paused():
            if every.validate_ and (done % every.validate_ == 0 or done == last) and not stop:
                stop = run.any_process(not validate(run, done))
            wanted = run.any_process(run.accelerator.is_main_process and run.control.save_requested())
            if done % every.checkpoint == 0 or done == last or stop or wanted:
                save(run, done)
        if stop and done < last:
            return False
    return True


def any_process(accelerator: Accelerator, flag: bool) -> bool:
    """Whether the flag is set in any process; all must ask together, so that none goes on alone."""
    if accelerator.num_processes == 1:
        return flag
    return bool(accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), "sum") > 0)


def _version(objective: Objective) -> int:
    """Grows with every change of a weight in place."""
    return sum(value._version for value in objective.parameters())


def _accumulate_gradients(run: Run, step: int, may_leave: bool) -> Tensor | None:
    """Backward over the step's micro-batches: the mean loss of this process, None if a stop gave the step up."""
    run.objective.train()
    run.optimizer.zero_grad(set_to_none=True)
    count = run.recipe.gradient_accumulation
    total = torch.zeros((), device=run.accelerator.device)
    run.micro_batches.clear()
    for micro in range(count):
        if micro and may_leave and run.any_process(run.control.stop_requested()):
            run.optimizer.zero_grad(set_to_none=True)
            return None
        with run.meter.waiting():
            batch = next(run.batches)
        batch = {name: value.to(run.accelerator.device, non_blocking=True) for name, value in batch.items()}
        keys = Keys(run.recipe.seed, step, micro, run.accelerator.process_index, run.accelerator.num_processes)
        torch.manual_seed(layer_seed(keys))
        with _exchanging_gradients(run, micro == count - 1):
            loss, logs = run.model(batch, keys)
            run.accelerator.backward(loss / count)
        total += loss.detach() / count
        run.micro_batches.append(batch)
        run.meter.take(batch)
        run.journal.add({"loss": loss.detach(), **logs})
    return total


def _exchanging_gradients(run: Run, exchange: bool) -> AbstractContextManager[Any]:
    """Inside, a backward sums gradients over the processes, or leaves that to a later one of the same step."""
    if run.is_sharded:
        sharding.exchange_gradients(run.objective, exchange)
        return nullcontext()
    return nullcontext() if exchange else run.accelerator.no_sync(run.model)


def _clip_gradients(run: Run) -> Tensor:
    """Scale the gradients down to the recipe's norm; returns the norm before, the same in all processes."""
    norm = run.accelerator.clip_grad_norm_(run.model.parameters(), run.recipe.optimizer.max_grad_norm)
    return sharding.whole(torch.as_tensor(norm))


def _check_finite(run: Run, step: int, loss: Tensor, norm: Tensor) -> None:
    """Stop before the optimiser sees NaN or infinity, and leave what is needed to meet it again."""
    if not run.any_process(not (bool(torch.isfinite(loss)) and bool(torch.isfinite(norm)))):
        return
    recipe, rank = run.recipe, run.accelerator.process_index
    seen = {
        "step": step,
        "loss": float(loss),
        "grad_norm": float(norm),
        "dtype": "bf16" if recipe.autocasts else "no",
        "seed": recipe.seed,
        "rank": rank,
        "world": run.accelerator.num_processes,
    }
    folder = run.folder / f"nonfinite-step-{step:08d}"
    place = folder if rank == 0 else folder / f"process-{rank}"
    weights = run.objective.state_dict()
    if run.is_sharded:
        weights = sharding.whole_tensors(weights)
    write_dump(place, weights, run.micro_batches, seen, recipe.model_dump(mode="json", by_alias=True))
    run.accelerator.wait_for_everyone()
    raise NonFiniteError(
        f"step={step}: loss={float(loss)}, gradient norm={float(norm)} (mixed_precision={seen['dtype']}); "
        f"the weights were not touched. `vgen train replay {place}` does the step again. "
        "Resume with a lower optimizer.lr or mixed_precision=no."
    )


def validate(run: Run, step: int) -> bool:
    """Measure the averaged weights; returns False when asked to stop meanwhile.

    The first process does it, while the others wait; where the weights are sharded, all do the same.
    """
    main = run.accelerator.is_main_process
    if not main and not run.is_sharded:
        return True
    run.objective.eval()
    ask = run.any_process if run.is_sharded else bool
    samples = run.folder / ("samples" if main else f"samples-{run.accelerator.process_index}.tmp")
    try:
        with (
            torch.no_grad(),
            run.ema.applied(run.objective),
            run.control.saving_with(lambda: save(run, step), ask),
        ):
            try:
                measured = run.objective.validate(step, samples, run.control)
            finally:
                sharding.divide_again(run.objective)
    except StopRequested:
        return False
    run.journal.write({"step": step, **{f"validation/{name}": value for name, value in measured.items()}})
    run.journal.say(f"step {step} validation " + " ".join(f"{name} {value:.4g}" for name, value in measured.items()))
    return True


def save(run: Run, step: int) -> None:
    """Write a checkpoint after `step` steps; also while the averaged weights are in place."""
    about = {
        "world": run.accelerator.num_processes,
        "sharding": run.recipe.sharding,
        "origin": run.objective.origin,
        "recipe": run.recipe.model_dump(mode="json", by_alias=True),
    }
    if run.is_sharded:
        tensors = sharding.state(run.objective, run.ema, run.optimizer)
        sharding.write(run.store, run.accelerator, tensors, step, run.fingerprint, about)
    elif run.accelerator.is_main_process:
        state = TrainingState(
            step=step,
            fingerprint=run.fingerprint,
            model={**run.objective.state_dict(), **run.ema.kept},
            ema=run.ema.state_dict(),
            optimizer=run.optimizer.state_dict(),
            about=about,
        )
        run.store.save(state)
