"""What a run will take, before it starts: memory by what it is for, and time by what it is spent on.

Memory is rehearsed tensors (`vgen.training.cost.rehearsal`) and what this process holds besides. Time is counted:
operations and memory traffic on shapes alone, at rates that this machine shows in a fraction of a second
(`vgen.training.estimate.counted_time`); models that earlier recipes make need not be there. Or it is measured: a few
micro-batches of every kind in the recipe run for real, with real batches (latents not cached yet hold zeros); nothing
is kept.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

import psutil
import torch
from accelerate import Accelerator
from torch import nn

from vgen.engine.memory.coding import decoding_peak, encoding_peak
from vgen.errors import bytes_text, duration
from vgen.training.components import build_parts, checkpoint_activations
from vgen.training.control import Control
from vgen.training.cost.rehearsal import MemoryEstimate, memory_of, peak_bytes
from vgen.training.cost.throughput import Kind, example_batches, peak_memory
from vgen.training.data.plan import PREFETCHED, Batch, BatchPlan, Source, workers_of
from vgen.training.data.shards import CachedBatches, ShardCache
from vgen.training.estimate.counted_time import CountedTime, described
from vgen.training.estimate.machine import Machine
from vgen.training.estimate.timing import MeasuredTime
from vgen.training.model_sources import LOADED, ConfigSource, ModelSource
from vgen.training.objectives.base import Coding, Costs, Objective
from vgen.training.objectives.registry import Setup, build
from vgen.training.recipe import Recipe
from vgen.training.run import build_accelerator, build_objective
from vgen.types import VideoShape

_HOLES: Final = 0.25
"""What a CPU's heap loses between the tensors of a step, as a share of them."""


_peaks: dict[str, tuple[int, int]] = {}


@dataclass
class Estimate:
    """What a run takes.

    Attributes:
        memory: of one process, for what is trained.
        base: bytes of everything else: libraries, frozen weights, cached data, batches loaded ahead.
        holes: what a CPU's heap loses between the tensors of a step.
        seen: most bytes held while micro-batches were timed: a run holds no less.
        measured: whether the seconds are those of real micro-batches.
        encodes_in_step: whether some tasks encode what they give in the step itself.
        elsewhere: most bytes above `base` and the weights while encoding, validating or exporting.
        caching, training, validation: seconds.
        steps: seconds of a step of every kind.
        samples_per_second: in training.
    """

    memory: MemoryEstimate
    base: int
    elsewhere: int
    holes: int = 0
    seen: int = 0
    measured: bool = False
    encodes_in_step: bool = False
    caching: float = 0.0
    training: float = 0.0
    validation: float = 0.0
    steps: dict[Kind, float] = field(default_factory=dict)
    samples_per_second: float = 0.0

    @property
    def peak(self) -> int:
        """Most bytes a process holds."""
        held = self.memory.weights + self.memory.optimizer + self.memory.ema
        # What a step that encodes has used is not given back before its forward: measured, the two add up.
        in_step = self.memory.total + (self.elsewhere if self.encodes_in_step else 0)
        return max(self.base + self.holes + max(in_step, held + self.elsewhere), self.seen)

    @property
    def seconds(self) -> float:
        """Of the whole run, but for reading and writing files."""
        return self.caching + self.training + self.validation

    def lines(self) -> list[str]:
        """For the screen."""
        memory = self.memory
        parts = {
            "weights": memory.weights, "gradients": memory.gradients, "optimizer": memory.optimizer,
            "average": memory.ema, "activations": memory.activations, "workspace": memory.workspace,
            "everything else": self.peak - self.memory.total,
        }  # fmt: skip
        shown = [f"memory {bytes_text(self.peak)} per process"]
        shown += [f"  {name} {bytes_text(size)}" for name, size in parts.items()]
        shown.append(f"time {duration(self.seconds)}, {self.samples_per_second:.3g} samples/s in training")
        spent = {"encoding latents": self.caching, "training": self.training, "validation": self.validation}
        shown += [f"  {name} {duration(seconds)}" for name, seconds in spent.items() if seconds]
        for (num_frames, crop, size), seconds in self.steps.items():
            cut = f" cropped to {crop}" if crop else ""
            shown.append(f"  a step of {size} x {num_frames} frames{cut}: {seconds:.3g} s")
        if not self.measured:
            shown.append("time is estimated from FLOPs and memory traffic; --measure runs real steps (minutes)")
        return shown


class _Rehearsal(NamedTuple):
    """What a dry run is made of."""

    recipe: Recipe
    accelerator: Accelerator
    plan: BatchPlan
    objective: Objective
    source: Source
    examples: dict[Kind, Batch]
    costs: Costs

    @property
    def cache(self) -> ShardCache[Any] | None:
        """Of the source, where it has one."""
        return self.source.cache if isinstance(self.source, CachedBatches) else None

    def steps_of(self, kind: Kind) -> float:
        """How many steps of the run are of a kind."""
        length, crop, size = kind
        own = [s for s in self.plan.stages if s.crop == crop and s.batch.get(length, 0) // self.plan.world == size]
        return sum(stage.steps * stage.frames.get(length, 0) / sum(stage.frames.values()) for stage in own)


def dry_run(
    recipe: Recipe,
    clock: Callable[[], float] = time.perf_counter,
    *,
    measure: bool = False,
    models: ConfigSource | None = None,
) -> Estimate:
    """Estimate what `recipe` takes; trains nothing and writes nothing that stays.

    Args:
        recipe: of the run.
        clock: what seconds are read from.
        measure: run real micro-batches of every kind, on the models as they are.
        models: knows those that are not there yet; what the recipe makes is added. Not used where it is measured.
    Raises:
        RequestError: the recipe is wrong, or what it starts from is missing.
    """
    if recipe.num_threads is not None:
        torch.set_num_threads(recipe.num_threads)
    known = models or ConfigSource()
    source_of_models: ModelSource = LOADED if measure else known
    with TemporaryDirectory() as name:
        folder = Path(name)
        accelerator = build_accelerator(recipe, folder)
        plan = BatchPlan(recipe.stages, recipe.seed, accelerator.process_index, accelerator.num_processes)
        objective, source = build_objective(
            recipe, folder, Control(folder), accelerator, blank=True, models=source_of_models
        )
        costs, examples = objective.costs(), example_batches(plan, source)
        run = _Rehearsal(recipe, accelerator, plan, objective, source, examples, costs)
        estimate = _held_by(run, weights_are_there=measure)
        if measure:
            _measure(run, estimate, clock)
        else:
            _count(run, estimate, clock)
            known.add(recipe.run_folder / "export", objective.exports())
    return estimate


def exports_of(recipe: Recipe, models: ConfigSource) -> Mapping[str, nn.Module]:
    """The models that a recipe makes, without content, by the names of a pipeline's components."""
    with TemporaryDirectory() as name:
        setup = Setup(recipe, Path(name), torch.device("cpu"), models=models)
        return build(recipe.objective, setup)[0].exports()


def _held_by(run: _Rehearsal, weights_are_there: bool) -> Estimate:
    """The memory of a process."""
    objective, device, cache = run.objective, run.accelerator.device, run.cache
    memory = _memory(run)
    before = _held(device)  # after the rehearsal, which loads the libraries that a run loads, too
    if weights_are_there:
        before = max(0, before - sum(value.nbytes for value in objective.parameters()))
    ahead = PREFETCHED * max(sum(value.nbytes for value in batch.values()) for batch in run.examples.values())
    data = (cache.nbytes if cache else 0) + (ahead if workers_of(run.source) else 0)
    unseen = 0 if weights_are_there else _frozen_without_content(run)
    return Estimate(
        memory,
        before + unseen + data,
        elsewhere=max((_coding_bytes(coding, device.type) for coding in run.costs.codings), default=0),
        holes=int(_HOLES * memory.total) if device.type == "cpu" else 0,
        encodes_in_step=any(coding.in_step for coding in run.costs.codings),
    )


def _frozen_without_content(run: _Rehearsal) -> int:
    """Bytes that models next to the trained ones will have."""
    own = {id(value) for value in run.objective.parameters()}
    frozen = {id(value): value for part in run.costs.frozen for value in part.parameters()}
    return sum(value.nbytes for key, value in frozen.items() if value.is_meta and key not in own)


def _measure(run: _Rehearsal, estimate: Estimate, clock: Callable[[], float]) -> None:
    """Time from real micro-batches, and what the process held meanwhile."""
    alone = run.recipe.model_copy(update={"sharding": "none"})
    parts = build_parts(alone, run.objective, run.accelerator, run.plan, run.source)
    _fill_in_times(run, MeasuredTime(run.recipe, parts, run.plan, run.source, run.examples, clock), estimate)
    estimate.seen = peak_memory(run.accelerator.device)
    estimate.measured = True


def _count(run: _Rehearsal, estimate: Estimate, clock: Callable[[], float]) -> None:
    """Time from what is counted on shapes."""
    machine = Machine(run.accelerator.device, run.recipe.autocasts, clock)
    shares = {kind: run.steps_of(kind) / run.recipe.total_steps for kind in run.examples}
    _fill_in_times(
        run, CountedTime(run.objective, run.plan, run.source, run.examples, shares, machine, clock), estimate
    )


def _memory(run: _Rehearsal) -> MemoryEstimate:
    recipe, objective = run.recipe, run.objective
    largest = max(run.examples.values(), key=lambda batch: sum(value.numel() for value in batch.values()))
    if recipe.activation_checkpointing:
        checkpoint_activations(objective)
    estimate = memory_of(
        objective.parameters(),
        _peak(run, largest),
        optimizer=recipe.optimizer.name,
        processes=run.accelerator.num_processes,
        sharded=recipe.sharding == "fsdp",
        frozen_bytes=run.costs.frozen_weight_bytes,
    )
    return estimate._replace(weights=estimate.weights - run.costs.host_bytes)


def _peak(run: _Rehearsal, batch: Batch) -> int:
    """Bytes of a micro-batch; what was rehearsed once is scaled for other numbers of rows."""
    objective, bfloat16 = run.objective, run.recipe.autocasts
    device, given = "cuda" if run.accelerator.device.type == "cuda" else "cpu", objective.most_given(batch)
    key = f"{device}|{bfloat16}|{given}|{described(objective, batch, run.costs.settings)}"
    rows = len(next(iter(batch.values())))
    gradients = 4 * sum(value.numel() for value in objective.parameters() if value.requires_grad)
    if key not in _peaks:
        loss = lambda inputs: objective.rehearse(inputs, given)  # noqa: E731
        _peaks[key] = rows, peak_bytes(objective, loss, batch, device, bfloat16)
    rehearsed, peak = _peaks[key]
    return gradients + (peak - gradients) * rows // rehearsed


def _held(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return int(psutil.Process().memory_info().rss)


def _coding_bytes(coding: Coding, device: str) -> int:
    peak = encoding_peak if coding.verb == "encode" else decoding_peak
    shape = VideoShape(coding.num_frames, *coding.canvas).latent(coding.vae.strides)
    return peak(coding.vae, shape, coding.batch, device=device)


def _fill_in_times(run: _Rehearsal, timed: MeasuredTime | CountedTime, estimate: Estimate) -> None:
    """What caching, training and validation take."""
    recipe, plan, objective, count = run.recipe, run.plan, run.objective, run.recipe.gradient_accumulation
    loads: dict[Kind, float] = {}
    micro: dict[Kind, float] = {}  # seconds of a plain micro-batch
    for kind in run.examples:
        loads[kind], micro[kind] = timed.micro_batch(kind, objective.plain_task)

    def forward(num_frames: int) -> float:
        """Of one sample; taken from the kind nearest in length, whole clips before cropped ones."""
        kind = min(micro, key=lambda kind: (kind.crop is not None, abs(kind.num_frames - num_frames)))
        return micro[kind] / kind.rows / run.costs.forwards_per_row * num_frames / kind.num_frames

    relative = _relative_to_plain(run, timed)
    stepping = timed.optimizer()
    samples = 0.0
    spent = dict.fromkeys(run.examples, 0.0)
    for stage in recipe.stages:
        shares = {length: share for length, share in stage.frames.items() if share > 0}
        for length, share in shares.items():
            kind = Kind(length, stage.crop, stage.batch[length] // plan.world)
            part = share / sum(shares.values()) * stage.steps
            tasks = objective.task_shares(stage, length)
            computing = micro[kind] * sum(share * relative[task] for task, share in tasks.items())
            spent[kind] += part * (count * _with_loading(run.source, computing, loads[kind]) + stepping)
            samples += part * stage.batch[length] * count
    estimate.caching = timed.caching(run.cache, forward) if run.cache else 0.0
    estimate.training = sum(spent.values())
    estimate.steps = {kind: seconds / run.steps_of(kind) for kind, seconds in spent.items()}
    estimate.samples_per_second = samples / max(estimate.training, 1e-9)
    if recipe.every.validate_:
        validations = -(-recipe.total_steps // recipe.every.validate_)
        forwards = run.costs.validation.items()
        estimate.validation = validations * sum(number * forward(num_frames) for num_frames, number in forwards)


def _relative_to_plain(run: _Rehearsal, timed: MeasuredTime | CountedTime) -> dict[str, float]:
    """Seconds of each task over those of a plain micro-batch, from the kind of clips that takes most."""
    objective, plain = run.objective, run.objective.plain_task
    kinds = [(stage, length) for stage in run.plan.stages for length in stage.frames]
    tasks = {task for stage, length in kinds for task in objective.task_shares(stage, length)}
    if tasks <= {plain}:
        return {plain: 1.0}
    clips = [kind for kind in run.examples if kind.num_frames > 1]
    kind = max(clips, key=lambda kind: kind.num_frames * kind.rows * run.steps_of(kind))
    seconds = {task: timed.micro_batch(kind, task)[1] for task in sorted(tasks | {plain})}
    return {task: value / seconds[plain] for task, value in seconds.items()}


def _with_loading(source: Source, computing: float, loading: float) -> float:
    """Seconds of a micro-batch and its loading, which workers do meanwhile if there are processors for it."""
    workers = workers_of(source)
    meanwhile = workers and (os.cpu_count() or 1) > torch.get_num_threads()
    return max(computing, loading / workers) if meanwhile else computing + loading
