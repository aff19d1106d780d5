"""From a recipe to a trained model: build everything, resume, train, export."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object

from vgen.engine.device import DTYPES
from vgen.engine.memory.allocator import keep_freed_memory
from vgen.errors import RequestError, VgenError
from vgen.io.files import part_of
from vgen.training.checkpoint.store import CheckpointStore
from vgen.training.components import alone_in, build_parts, resume_from
from vgen.training.config.files import RECIPE, is_run
from vgen.training.control import Control, StopRequested
from vgen.training.data.plan import BatchPlan, Source, batches, workers_of
from vgen.training.data.shards import ShardCache
from vgen.training.loop import Run, any_process, train
from vgen.training.model_sources import LOADED, ModelSource
from vgen.training.nan_dump import Replay, read_dump, replay
from vgen.training.objectives.base import Objective
from vgen.training.objectives.registry import Setup, build
from vgen.training.provenance import write_record
from vgen.training.recipe import Recipe, load_recipe
from vgen.training.report.log import Journal
from vgen.training.report.trackers import check_trackers, finish_trackers, start_trackers, tracker_folder

_PATIENCE = timedelta(hours=6)
"""How long processes wait for the one that validates, exports or encodes."""


def run_recipe(
    path: str | Path,
    overrides: list[str] | None = None,
    resume: bool = True,
    export_only: bool = False,
    folder: Path | None = None,
) -> Path:
    """Train what a recipe describes, and export the averaged weights.

    Args:
        path: the YAML recipe.
        overrides: "key=value" changes, e.g. "optimizer.lr=1e-3".
        resume: go on from the newest valid checkpoint in the run's folder; False refuses a folder that has one.
        export_only: train no further; export the newest checkpoint.
        folder: of the run, in place of what the recipe says.

    Returns:
        The run's folder: log.jsonl, samples/, checkpoints/ and, once the recipe is finished, export/.

    Raises:
        RequestError: the recipe is wrong.
        CheckpointError: the checkpoint belongs to other data or another model.
        NonFiniteError: NaN or infinity in the loss or the gradients.
    """
    recipe = load_recipe(path, overrides, folder)
    check_trackers(list(recipe.trackers))
    folder = recipe.run_folder
    if recipe.num_threads is not None:
        torch.set_num_threads(recipe.num_threads)
    store = CheckpointStore(folder / "checkpoints", recipe.checkpoint.keep)
    if not resume and (there := store.newest()) is not None:
        raise VgenError(f"output_dir={folder} already holds {there.name}; resume it, or give another output_dir.")
    with alone_in(folder), Control(folder) as control:
        try:
            finished = _train_and_export(recipe, folder, store, control, export_only)
        except StopRequested:
            finished = False
        if not finished:
            control.acknowledge()
    return folder


def _train_and_export(
    recipe: Recipe, folder: Path, store: CheckpointStore, control: Control, export_only: bool
) -> bool:
    accelerator = build_accelerator(recipe, folder)
    plan = BatchPlan(recipe.stages, recipe.seed, accelerator.process_index, accelerator.num_processes)
    objective, source = build_objective(recipe, folder, control, accelerator, blank=export_only)
    main = accelerator.is_main_process
    parts = build_parts(recipe, objective, accelerator, plan, source)
    start_step, notes = resume_from(store, recipe, parts, accelerator, source.fingerprint)
    track = start_trackers(accelerator, recipe, start_step)
    gather = _gathering(accelerator)
    with Journal(folder / "log.jsonl", start_step, recipe.total_steps, not main, gather, track) as journal:
        if recipe.mixed_precision == "bf16" and not recipe.autocasts:
            notes = [*notes, "this processor would emulate bfloat16: computing in float32, which is many times faster"]
        for note in notes:
            journal.say(note)
        steps = batches(
            plan, source, start_step, recipe.gradient_accumulation, 0 if export_only else workers_of(source),
            objective.prepare, pin_memory=accelerator.device.type == "cuda",
        )  # fmt: skip
        run = Run(
            recipe, folder, accelerator, objective, parts.model, parts.optimizer, parts.learning_rate, parts.ema, steps,
            store, journal, control, parts.meter, source.fingerprint, start_step,
        )  # fmt: skip
        if not export_only and not train(run):
            journal.say("stopped; run the same command again to go on")
            finish_trackers(accelerator)
            accelerator.wait_for_everyone()
            return False
        if main:
            objective, ema = parts.whole(store)
            with ema.applied(objective):
                trained = start_step if export_only else max(start_step, recipe.total_steps)
                measured = export(objective, folder, recipe, control, trained)
            journal.say(f"exported to {folder / 'export'} " + " ".join(f"{k} {v:.4g}" for k, v in measured.items()))
    finish_trackers(accelerator)
    accelerator.wait_for_everyone()  # a process that leaves while another still works can abort both
    return True


def _gathering(accelerator: Accelerator) -> Callable[[Any], list[Any]]:
    if accelerator.num_processes == 1:
        return lambda value: [value]
    return lambda value: list(gather_object([value]))


def build_objective(
    recipe: Recipe,
    folder: Path,
    control: Control,
    accelerator: Accelerator,
    blank: bool = False,
    models: ModelSource = LOADED,
) -> tuple[Objective, Source]:
    """The recipe's objective and the source of its batches; encodes the latent cache where one is needed.

    Args:
        recipe: of the run.
        folder: of the run.
        control: asked whether to stop while encoding.
        accelerator: of the run.
        blank: encode nothing; the cache gives zeros of the right shapes.
        models: where models come from.
    Raises:
        RequestError: what the recipe begins with is not there.
    """
    for name, place in recipe.objective.sources().items():
        if not models.knows(place):
            raise RequestError(
                f"objective.{name}={place} holds no model (no config.json or model_index.json): train the recipe that "
                "makes it first, or name the folder of a trained model."
            )
    fill = partial(_fill, control=control, accelerator=accelerator, blank=blank)
    setup = Setup(recipe, folder, accelerator.device, fill, models, accelerator.main_process_first)
    return build(recipe.objective, setup)


def _fill(cache: ShardCache[Any], control: Control, accelerator: Accelerator, blank: bool) -> None:
    """Make what is missing, each process its share, then read everything; a stop asked of one stops all."""
    if blank:
        cache.load_blank()
        return
    stopped = False
    try:
        cache.fill(control, partial(print, flush=True), accelerator.process_index, accelerator.num_processes)
    except StopRequested:
        stopped = True
    if any_process(accelerator, stopped):
        raise StopRequested
    cache.load()


def export(objective: Objective, run: Path, recipe: Recipe, control: Control, steps: int) -> dict[str, float]:
    """Write the present weights as a model folder, in place of an earlier one only once it is complete.

    Args:
        objective: holds the weights.
        run: the run's folder; the model goes into its export/.
        recipe: of the run.
        control: asked whether to stop meanwhile.
        steps: that the weights were trained for.
    """
    with part_of(run / "export", overwrite=True, folder=True) as part:
        measured = objective.finish(part, DTYPES[recipe.export_dtype], control)
        write_record(part, recipe, run / "log.jsonl", steps, int(os.environ.get("WORLD_SIZE", "1")))
    return measured


def build_accelerator(recipe: Recipe, folder: Path) -> Accelerator:
    """What moves and synchronises the processes; refuses a start that would make each a run of its own."""
    if "WORLD_SIZE" not in os.environ:
        AcceleratorState._reset_state()
    patience = InitProcessGroupKwargs(timeout=_PATIENCE)
    accelerator = Accelerator(
        cpu=recipe.on_cpu,  # without it, accelerate gives each of several processes without a GPU a run of its own
        mixed_precision="bf16" if recipe.autocasts else "no",
        kwargs_handlers=[patience],
        log_with=list(recipe.trackers) or None,
        project_dir=tracker_folder(folder),
    )
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != asked:
        raise VgenError(
            f"{asked} processes were started, and accelerate makes {accelerator.num_processes} of them work together; "
            "each would train and write the same. Start one, or set device: cpu."
        )
    return accelerator


def replay_dump(folder: Path) -> tuple[dict[str, Any], Replay]:
    """Do the step of a dump again; returns what was seen then, and what came out now.

    Args:
        folder: `nonfinite-step-N` of a run, inside the run's folder.
    Raises:
        RequestError: the folder is no dump.
    """
    seen = read_dump(folder)
    run = next(parent for parent in folder.resolve().parents if not parent.name.startswith("nonfinite-"))
    recipe = Recipe.model_validate(seen["recipe"])
    if is_run(run / RECIPE):  # its data may have been moved with it
        recipe = recipe.model_copy(update={"data": load_recipe(run / RECIPE).data})
    accelerator = build_accelerator(recipe, run)
    objective, _ = build_objective(recipe, run, Control(run), accelerator, blank=True)
    return seen, replay(folder, objective, seen, accelerator.device, seen["dtype"])


def main() -> None:
    """`python -m vgen.training.run RECIPE [key=value ...]`."""
    parser = argparse.ArgumentParser(description="Train what a recipe describes.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("overrides", nargs="*", help="key=value, e.g. optimizer.lr=1e-3")
    parser.add_argument("--export", action="store_true", help="train no further; export the newest checkpoint")
    arguments = parser.parse_args()
    keep_freed_memory()
    try:
        run_recipe(arguments.recipe, arguments.overrides, export_only=arguments.export)
    except VgenError as error:
        raise SystemExit(f"error: {error}") from None
    leave_processes()


def leave_processes() -> None:
    """Part from the other processes of the run; to be called last."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
