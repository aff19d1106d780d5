"""The training loop; there is no other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from vgen.errors import NonFiniteError
from vgen.training.config import Recipe
from vgen.training.control import Control, StopRequested
from vgen.training.data.plan import Batch
from vgen.training.ema import Ema
from vgen.training.journal import Journal
from vgen.training.objectives.base import Objective
from vgen.training.optimizers import LearningRate
from vgen.training.randomness import Keys
from vgen.training.state import CheckpointStore, TrainingState


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
    fingerprint: str
    start_step: int
    micro_batches: list[dict[str, Any]] = field(default_factory=list)


def train(run: Run) -> bool:
    """Run from `start_step` to the end of the recipe; returns False when asked to stop before it."""
    every, last = run.recipe.every, run.recipe.total_steps
    for step in range(run.start_step, last):
        run.objective.before_step(step, run.ema)
        rate = run.learning_rate.apply(step)
        loss = _accumulate_gradients(run, step)
        norm = run.accelerator.clip_grad_norm_(run.model.parameters(), run.recipe.optimizer.max_grad_norm)
        _check_finite(run, step, loss, norm)
        run.optimizer.step()
        run.ema.update(run.objective, step)

        done = step + 1
        run.journal.advance(done)
        if done % every.log == 0 or done == last:
            run.journal.flush(done, learning_rate=rate, grad_norm=float(norm))
        stop = any_process(run.accelerator, run.control.stop_requested())
        if every.validate_ and (done % every.validate_ == 0 or done == last) and not stop:
            stop = any_process(run.accelerator, not validate(run, done))
        if done % every.checkpoint == 0 or done == last or stop or _save_requested(run):
            save(run, done)
        if stop and done < last:
            return False
    return True


def any_process(accelerator: Accelerator, flag: bool) -> bool:
    """Whether the flag is set in any process; all must ask together, so that none goes on alone."""
    if accelerator.num_processes == 1:
        return flag
    return bool(accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), "sum") > 0)


def _accumulate_gradients(run: Run, step: int) -> Tensor:
    """Backward over the step's micro-batches; returns the mean loss."""
    run.objective.train()
    run.optimizer.zero_grad(set_to_none=True)
    count = run.recipe.gradient_accumulation
    total = torch.zeros((), device=run.accelerator.device)
    run.micro_batches.clear()
    for micro in range(count):
        batch = {name: value.to(run.accelerator.device) for name, value in next(run.batches).items()}
        keys = Keys(run.recipe.seed, step, micro, run.accelerator.process_index)
        torch.manual_seed(keys.number("layers"))
        if micro < count - 1:
            with run.accelerator.no_sync(run.model):
                loss, logs = run.model(batch, keys)
                run.accelerator.backward(loss / count)
        else:
            loss, logs = run.model(batch, keys)
            run.accelerator.backward(loss / count)
        total += loss.detach() / count
        run.micro_batches.append(_describe(batch, keys))
        run.journal.add({"loss": loss.detach(), **logs}, samples=batch["indices"].shape[0])
    return total


def _describe(batch: Batch, keys: Keys) -> dict[str, Any]:
    shapes = {name: list(value.shape) for name, value in batch.items()}
    return {"micro": keys.micro, "indices": batch["indices"], "shapes": shapes}


def _check_finite(run: Run, step: int, loss: Tensor, norm: Tensor) -> None:
    """Stop before the optimiser sees NaN or infinity, and leave what is needed to look at the step again."""
    if bool(torch.isfinite(loss)) and bool(torch.isfinite(norm)):
        return
    dump = run.folder / f"nonfinite-step-{step:08d}.json"
    described = {
        "step": step,
        "loss": float(loss),
        "grad_norm": float(norm),
        "dtype": run.recipe.mixed_precision,
        "seed": run.recipe.seed,
        "rank": run.accelerator.process_index,
        "micro_batches": [{**item, "indices": item["indices"].tolist()} for item in run.micro_batches],
    }
    dump.write_text(json.dumps(described, indent=1))
    raise NonFiniteError(
        f"step={step}: loss={float(loss)}, gradient norm={float(norm)} (mixed_precision={run.recipe.mixed_precision}); "
        f"the weights were not touched. {dump} names the samples. "
        "Resume with a lower optimizer.lr or mixed_precision=no."
    )


def validate(run: Run, step: int) -> bool:
    """Measure the averaged weights; returns False when asked to stop meanwhile."""
    if not run.accelerator.is_main_process:
        return True
    run.objective.eval()
    try:
        with torch.no_grad(), run.ema.applied(run.objective):
            measured = run.objective.validate(step, run.folder / "samples", run.control)
    except StopRequested:
        return False
    run.journal.write({"step": step, **{f"validation/{name}": value for name, value in measured.items()}})
    run.journal.say(f"step {step} validation " + " ".join(f"{name} {value:.4g}" for name, value in measured.items()))
    return True


def _save_requested(run: Run) -> bool:
    return run.accelerator.is_main_process and run.control.save_requested()


def save(run: Run, step: int) -> None:
    """Write a checkpoint after `step` steps."""
    if not run.accelerator.is_main_process:
        return
    run.store.save(
        TrainingState(
            step=step,
            fingerprint=run.fingerprint,
            model=dict(run.objective.state_dict()),
            ema=run.ema.state_dict(),
            optimizer=run.optimizer.state_dict(),
        )
    )
