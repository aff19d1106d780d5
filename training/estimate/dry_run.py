"""What a run will take, before it starts: memory by what it is for, and time by what it is spent on.

Memory is rehearsed without content (`vgen.training.cost.rehearsal`). Time is counted: operations and memory traffic on
shapes alone, at rates that this machine shows in a fraction of a second (`vgen.training.estimate.counted_time`); models
that earlier recipes make need not be there. Or it is measured: a few micro-batches of every kind in the recipe run for
real, with real batches (latents not cached yet hold zeros); nothing is kept.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, NamedTuple

import psutil
import torch
from accelerate import Accelerator
from torch import nn

from vgen.engine.memory.coding import decoding_peak, encoding_peak
from vgen.engine.memory.offload import resident_bytes, weight_bytes
from vgen.errors import bytes_text, duration
from vgen.models import CausalVideoVAE
from vgen.training.components import build_parts, checkpoint_activations
from vgen.training.control import Control
from vgen.training.cost.rehearsal import MemoryEstimate, memory_of, peak_bytes
from vgen.training.cost.throughput import example_batches, peak_memory
from vgen.training.data.plan import PREFETCHED, Batch, BatchPlan, Source, workers_of
from vgen.training.data.shards import CachedBatches
from vgen.training.estimate.counted_time import CountedTime, described
from vgen.training.estimate.heap import canvas_of, process_peak
from vgen.training.estimate.timing import Kind, Probe, steps_of
from vgen.training.estimate.work import Machine
from vgen.training.model_sources import LOADED, ConfigSource, ModelSource
from vgen.training.objectives.base import QUANTILES, Objective
from vgen.training.objectives.flow.finetune import FineTuneObjective
from vgen.training.objectives.flow.flow import FlowObjective
from vgen.training.objectives.flow.tasks import CACHED_TASKS, most_tokens_beside
from vgen.training.objectives.making import made_by
from vgen.training.objectives.vae.vae import VaeObjective
from vgen.training.precision import autocasts
from vgen.training.recipe import FineTuneObjectiveConfig, Recipe
from vgen.types import VideoShape

_BACKWARD: Final = 3
"""Forward and backward together in forwards."""
_HOLES: Final = 0.25
"""What a CPU's heap loses between the tensors of a step, as a share of them."""


_peaks: dict[str, tuple[int, int]] = {}


@dataclass
class Estimate:
    """What a run takes.

    Attributes:
        memory: of one process, for what is trained.
        base: bytes of everything else: libraries, frozen weights, cached data, batches loaded ahead.
        seen: most bytes held while micro-batches were timed: a run holds no less.
        process: most bytes of a process on a CPU, with what its heap loses between blocks; None where not known.
        holes: of the heap, where the process is not known.
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
    seen: int = 0
    process: int | None = None
    holes: int = 0
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
        if self.process is not None:
            return max(self.process, self.seen)
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
    from vgen.training.run import build_accelerator, build_objective

    if recipe.num_threads is not None:
        torch.set_num_threads(recipe.num_threads)
    known = models or ConfigSource()
    source_of_models: ModelSource = LOADED if measure else known
    with TemporaryDirectory() as name:
        folder = Path(name)
        accelerator = build_accelerator(recipe, folder)
        plan = BatchPlan(recipe.stages, recipe.seed, accelerator.process_index, accelerator.num_processes)
        built = recipe if measure else _countable(recipe)
        objective, source = build_objective(
            built, folder, Control(folder), accelerator, blank=True, models=source_of_models
        )
        run = _Rehearsal(recipe, accelerator, plan, objective, source, example_batches(plan, source))
        estimate = _held_by(run, weights_are_there=measure)
        if measure:
            _measure(run, estimate, clock)
        else:
            _count(run, estimate, clock)
            known.add(recipe.run_folder / "export", made_by(built, known))
    return estimate


def _countable(recipe: Recipe) -> Recipe:
    """The recipe without what changes how its models are held or compiled, which shapes do not show."""
    objective = recipe.objective
    plain = {"compile_blocks": False, "offload": False, "base_weights": "keep"}
    changes = {name: value for name, value in plain.items() if hasattr(objective, name)}
    return recipe.model_copy(update={"objective": objective.model_copy(update=changes)})


def _held_by(run: _Rehearsal, weights_are_there: bool) -> Estimate:
    """The memory of a process, all but what its heap loses."""
    objective, source, device = run.objective, run.source, run.accelerator.device
    memory = _memory(run)
    before = _held(device)  # after the rehearsal, which loads the libraries that a run loads, too
    if weights_are_there:
        before = max(0, before - sum(value.nbytes for value in objective.parameters()))
    ahead = PREFETCHED * max(sum(value.nbytes for value in batch.values()) for batch in run.examples.values())
    cache = source.cache if isinstance(source, CachedBatches) else None
    data = (cache.nbytes if cache else 0) + (ahead if workers_of(source) else 0)
    unseen = 0 if weights_are_there else _frozen_without_content(objective)
    estimate = Estimate(memory, before + unseen + data, _elsewhere(objective, device.type))
    estimate.encodes_in_step = _encodes_in_step(objective)
    return estimate


def _frozen_without_content(objective: Objective) -> int:
    """Bytes that models beside the trained ones will have."""
    holders = [getattr(value, "pipeline", value) for value in getattr(objective, "_frozen", {}).values()]
    parts = [part for holder in holders for part in getattr(holder, "components", {"": holder}).values()]
    own = {id(value) for value in objective.parameters()}
    frozen = {id(value): value for part in parts if isinstance(part, nn.Module) for value in part.parameters()}
    return sum(value.nbytes for key, value in frozen.items() if value.is_meta and key not in own)


def _measure(run: _Rehearsal, estimate: Estimate, clock: Callable[[], float]) -> None:
    """Time from real micro-batches, and memory from what they left in the heap."""
    recipe, objective, source, plan = run.recipe, run.objective, run.source, run.plan
    cache = source.cache if isinstance(source, CachedBatches) else None
    estimate.caching = cache.missing_seconds(clock) if cache else 0.0
    parts = build_parts(recipe.model_copy(update={"sharding": "none"}), objective, run.accelerator, plan, source)
    probe = Probe(recipe, parts, plan, source, run.examples, clock)
    _time_training(run, probe, estimate)
    if run.accelerator.device.type == "cpu":
        estimate.process = process_peak(
            recipe, objective, source, plan, run.examples.values(), probe, encodes=estimate.caching > 0
        )
    estimate.seen = peak_memory(run.accelerator.device)
    estimate.measured = True


def _count(run: _Rehearsal, estimate: Estimate, clock: Callable[[], float]) -> None:
    """Time from what is counted on shapes."""
    device = run.accelerator.device
    machine = Machine(device, autocasts(run.recipe), clock)
    counted = CountedTime(run.recipe, run.objective, run.plan, run.source, run.examples, machine, clock)
    micro = _time_training(run, counted, estimate)
    if isinstance(run.source, CachedBatches):
        forward = lambda num_frames: _forward_seconds(micro, num_frames)  # noqa: E731
        estimate.caching = counted.caching(run.source.cache, forward)
    if device.type == "cpu":
        estimate.holes = int(_HOLES * estimate.memory.total)


def _memory(run: _Rehearsal) -> MemoryEstimate:
    recipe, objective, config = run.recipe, run.objective, run.recipe.objective
    largest = max(run.examples.values(), key=lambda batch: sum(value.numel() for value in batch.values()))
    device = "cuda" if run.accelerator.device.type == "cuda" else "cpu"
    if recipe.activation_checkpointing:
        checkpoint_activations(objective)
    peak = _peak(run, largest, device)
    eight_bits = isinstance(config, FineTuneObjectiveConfig) and config.base_weights != "keep"
    estimate = memory_of(
        objective.parameters(),
        peak,
        optimizer=recipe.optimizer.name,
        processes=run.accelerator.num_processes,
        sharded=recipe.sharding == "fsdp",
        frozen_bytes=1.0 if eight_bits else None,
    )
    if isinstance(config, FineTuneObjectiveConfig) and config.offload and isinstance(objective, FineTuneObjective):
        model = objective.transformer
        away = weight_bytes(model) - resident_bytes(model, model.transformer_blocks, frozen_only=True)
        estimate = estimate._replace(weights=estimate.weights - away)
    return estimate


def _peak(run: _Rehearsal, batch: Batch, device: str) -> int:
    """Bytes of a micro-batch; what was rehearsed once is scaled for other numbers of rows."""
    objective, bfloat16 = run.objective, autocasts(run.recipe)
    given: object = [run.recipe.stages, getattr(run.recipe.objective, "tasks", None)]
    if isinstance(objective, FlowObjective):
        given = most_tokens_beside(objective.drawn_tasks(), batch["latents"].shape[2], objective.strides)
    key = f"{device}|{bfloat16}|{given}|{described(objective, batch)}"
    rows = len(next(iter(batch.values())))
    gradients = 4 * sum(value.numel() for value in objective.parameters() if value.requires_grad)
    if key not in _peaks:
        _peaks[key] = rows, peak_bytes(objective, objective.rehearse_most, batch, device, bfloat16)
    rehearsed, peak = _peaks[key]
    return gradients + (peak - gradients) * rows // rehearsed


def _held(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return int(psutil.Process().memory_info().rss)


def _encodes_in_step(objective: Objective) -> bool:
    return isinstance(objective, FlowObjective) and bool(objective.drawn_tasks() - set(CACHED_TASKS))


def _elsewhere(objective: Objective, device: str) -> int:
    """The largest of what encoding, sampling and validation hold."""
    if isinstance(objective, FlowObjective):
        config, vae, size = objective.config, objective.vae, (objective.data.height, objective.data.width)
        encoded = [(frames, config.latents.batch) for frames in config.latents.groups]
        decoded = config.sample_clips
        if _encodes_in_step(objective):  # a whole micro-batch is rendered and encoded in the step
            encoded += [(length, size) for stage in objective.plan.stages for length, size in stage.batch.items()]
    elif isinstance(objective, VaeObjective):
        vae, size = objective.vae, canvas_of(objective.clips)
        encoded = [(objective.config.validation_frames, min(16, objective.config.validation_clips))]
        decoded = encoded[0][1]
    else:
        return 0
    frames, batch = max(encoded, key=lambda kind: kind[0] * kind[1])
    peaks = [_coding(encoding_peak, vae, (frames, *size), batch, device)]
    if decoded:
        frames = objective.config.validation_frames
        peaks.append(_coding(decoding_peak, vae, (frames, *size), decoded, device))
    return max(peaks)


def _coding(peak: Callable[..., int], vae: CausalVideoVAE, size: tuple[int, int, int], batch: int, device: str) -> int:
    return int(peak(vae, VideoShape(*size).latent(vae.strides), batch, device=device))


def _time_training(run: _Rehearsal, timed: Probe | CountedTime, estimate: Estimate) -> dict[Kind, float]:
    """Fill in what training and validation take; returns the seconds of a micro-batch of every kind."""
    recipe, plan, source, count = run.recipe, run.plan, run.source, run.recipe.gradient_accumulation
    micro: dict[Kind, float] = {}
    loads: dict[Kind, float] = {}
    for kind in run.examples:
        loads[kind], micro[kind] = timed.micro_batch(kind)
    times = timed.times_by_task(max(run.examples, key=lambda kind: kind[0] * kind[2] * steps_of(recipe, kind)))
    stepping = timed.optimizer()
    samples = 0.0
    spent = dict.fromkeys(run.examples, 0.0)
    for stage in recipe.stages:
        shares = {length: share for length, share in stage.frames.items() if share > 0}
        for length, share in shares.items():
            kind = (length, stage.crop, stage.batch[length] // plan.world)
            part = share / sum(shares.values()) * stage.steps
            computing = micro[kind] * (1.0 if length == 1 else times(stage))
            spent[kind] += part * (count * _with_loading(source, computing, loads[kind]) + stepping)
            samples += part * stage.batch[length] * count
    estimate.training = sum(spent.values())
    estimate.steps = {kind: seconds / steps_of(recipe, kind) for kind, seconds in spent.items()}
    estimate.samples_per_second = samples / max(estimate.training, 1e-9)
    if recipe.every.validate_:
        times_validated = -(-recipe.total_steps // recipe.every.validate_)
        estimate.validation = times_validated * _validation_seconds(run.objective, micro)
    return micro


def _with_loading(source: Source, computing: float, loading: float) -> float:
    workers = workers_of(source)
    beside = workers and (os.cpu_count() or 1) > torch.get_num_threads()
    return max(computing, loading / workers) if beside else computing + loading


def _validation_seconds(objective: Objective, micro: dict[Kind, float]) -> float:
    """From the time of a forward: a third of a micro-batch's, a sample."""
    if isinstance(objective, FlowObjective):
        config = objective.config
        guided = 2 if config.guidance_scale != 1 else 1
        samples = len(QUANTILES) * config.validation_clips + guided * config.sample_steps * config.sample_clips
        return samples * _forward_seconds(micro, config.validation_frames)
    if isinstance(objective, FineTuneObjective):
        return _fine_tune_validation(objective, micro)
    if isinstance(objective, VaeObjective):
        vae = objective.config
        clips = vae.validation_clips * _forward_seconds(micro, vae.validation_frames)
        return clips + 4 * vae.validation_clips * _forward_seconds(micro, 1)
    return 0.0


def _fine_tune_validation(objective: FineTuneObjective, micro: dict[Kind, float]) -> float:
    source, config, defaults = objective.source, objective.config, objective.pipeline.config.defaults
    guided = 2 if defaults.get("guidance_scale", 1) != 1 else 1
    clips = min(config.sample_clips, len(source.prompts()))
    measured = len(QUANTILES) * min(config.validation_samples, len(source.samples))
    samples = measured + guided * defaults.get("num_inference_steps", 1) * clips
    # Frozen weights have no gradients of their own: the backward is about another forward.
    share = _BACKWARD / 2 if config.mode == "lora" else 1.0
    return samples * share * max(_forward_seconds(micro, length) for length, _, _ in micro)


def _forward_seconds(micro: dict[Kind, float], num_frames: int) -> float:
    """Of one sample; taken from the kind nearest in length, whole clips before cropped ones."""
    kind = min(micro, key=lambda kind: (kind[1] is not None, abs(kind[0] - num_frames)))
    return micro[kind] / kind[2] / _BACKWARD * num_frames / kind[0]
