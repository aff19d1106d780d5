"""What a run will take, told before it starts: memory by what it is for, and time by what it is spent on.

Memory is rehearsed without content (`vgen.training.estimate`). Time is measured: a few micro-batches of every kind in
the recipe run for real, on this machine, with real batches (latents not cached yet hold zeros); nothing is kept.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import torch

from vgen.engine.memory import decoding_peak, encoding_peak
from vgen.models import CausalVideoVAE
from vgen.training.config import Recipe
from vgen.training.control import Control
from vgen.training.data.plan import PREFETCHED, Batch, BatchPlan, Source, workers_of
from vgen.training.data.shards import CachedBatches
from vgen.training.estimate import MemoryEstimate, memory_of, peak_bytes
from vgen.training.memory_rehearsal import canvas_of, process_peak
from vgen.training.meter import Meter, example_batches, peak_memory, shape_key
from vgen.training.objectives.base import QUANTILES, Objective
from vgen.training.objectives.finetune import FineTuneObjective
from vgen.training.objectives.flow import FlowObjective
from vgen.training.objectives.tasks import CACHED_TASKS
from vgen.training.objectives.vae import VaeObjective
from vgen.training.parts import build_parts, checkpoint_activations
from vgen.training.precision import autocasts
from vgen.training.timing import Kind, Probe
from vgen.types import VideoShape

_LONGEST_MICRO_BATCH = 10.0
"""Seconds; where one would take longer, fewer rows are measured."""
_USUAL_UTILISATION = 0.3
_BACKWARD = 3
"""Forward and backward together in forwards."""


@dataclass
class Estimate:
    """What a run takes.

    Attributes:
        memory: of one process, for what is trained.
        base: bytes of everything else: libraries, frozen weights, cached data, batches loaded ahead.
        seen: most bytes held while micro-batches were timed: a run holds no less.
        process: most bytes of a process on a CPU, with what its heap loses between blocks; None where not known.
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
        return max(self.base + max(in_step, held + self.elsewhere), self.seen)

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
        shown = [f"memory {self.peak / 2**30:.2f} GiB a process"]
        shown += [f"  {name} {size / 2**30:.2f} GiB" for name, size in parts.items()]
        shown.append(f"time {_duration(self.seconds)}, {self.samples_per_second:.3g} samples/s in training")
        spent = {"encoding latents": self.caching, "training": self.training, "validation": self.validation}
        shown += [f"  {name} {_duration(seconds)}" for name, seconds in spent.items() if seconds]
        for (num_frames, crop, size), seconds in self.steps.items():
            cut = f" cropped to {crop}" if crop else ""
            shown.append(f"  a step of {size} x {num_frames} frames{cut}: {seconds:.3g} s")
        return shown


def dry_run(recipe: Recipe, clock: Callable[[], float] = time.perf_counter) -> Estimate:
    """Estimate what `recipe` takes; trains nothing and writes nothing that stays.

    Args:
        recipe: of the run.
        clock: what seconds are read from.
    Raises:
        RequestError: the recipe is wrong; CheckpointError: what it starts from is missing.
    """
    from vgen.training.run import build_accelerator, build_objective

    if recipe.num_threads is not None:
        torch.set_num_threads(recipe.num_threads)
    with TemporaryDirectory() as name:
        folder = Path(name)
        accelerator = build_accelerator(recipe, folder)
        plan = BatchPlan(recipe.stages, recipe.seed, accelerator.process_index, accelerator.num_processes)
        objective, source = build_objective(recipe, folder, Control(folder), accelerator, blank=True)
        examples = example_batches(plan, source)
        memory = _memory(recipe, objective, examples, accelerator.num_processes)
        before = _held(accelerator.device)  # after the rehearsal, which loads the libraries that a run loads, too
        ahead = PREFETCHED * max(sum(value.nbytes for value in batch.values()) for batch in examples.values())
        cache = source.cache if isinstance(source, CachedBatches) else None
        data = (cache.nbytes if cache else 0) + (ahead if workers_of(source) else 0)
        estimate = Estimate(memory, max(0, before - _weights(objective)) + data, _elsewhere(objective))
        estimate.encodes_in_step = _encodes_in_step(objective)
        estimate.caching = cache.missing_seconds(clock) if cache else 0.0
        parts = build_parts(recipe.model_copy(update={"sharding": "none"}), objective, accelerator, plan, source)
        probe = Probe(recipe, parts, plan, source, clock)
        _time_training(recipe, probe, estimate, examples)
        if accelerator.device.type == "cpu":
            estimate.process = process_peak(
                recipe, objective, source, plan, examples.values(), probe, encodes=estimate.caching > 0
            )
        estimate.seen = peak_memory(accelerator.device)
    return estimate


def _memory(recipe: Recipe, objective: Objective, examples: dict[Kind, Batch], world: int) -> MemoryEstimate:
    largest = max(examples.values(), key=lambda batch: sum(value.numel() for value in batch.values()))
    device = "cuda" if next(objective.parameters()).device.type == "cuda" else "cpu"
    if recipe.activation_checkpointing:
        checkpoint_activations(objective)
    peak = peak_bytes(objective, objective.rehearse_most, largest, device, autocasts(recipe))
    return memory_of(
        objective.parameters(),
        peak,
        optimizer=recipe.optimizer.name,
        processes=world,
        sharded=recipe.sharding == "fsdp",
    )


def _held(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return int(psutil.Process().memory_info().rss)


def _weights(objective: Objective) -> int:
    return sum(value.nbytes for value in objective.parameters())


def _encodes_in_step(objective: Objective) -> bool:
    return isinstance(objective, FlowObjective) and bool(objective.drawn_tasks() - set(CACHED_TASKS))


def _elsewhere(objective: Objective) -> int:
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
    peaks = [_coding(encoding_peak, vae, frames, *size, batch)]
    if decoded:
        frames = objective.config.validation_frames
        peaks.append(_coding(decoding_peak, vae, frames, *size, decoded))
    return max(peaks)


def _coding(peak: Callable[..., int], vae: CausalVideoVAE, num_frames: int, height: int, width: int, batch: int) -> int:
    return int(peak(vae, VideoShape(num_frames, height, width).latent(vae.strides), batch))


def _time_training(recipe: Recipe, probe: Probe, estimate: Estimate, examples: dict[Kind, Batch]) -> None:
    parts, plan, source = probe.parts, probe.plan, probe.source
    count = recipe.gradient_accumulation
    micro: dict[Kind, float] = {}
    loads: dict[Kind, float] = {}
    for kind, example in examples.items():
        loads[kind], micro[kind] = probe.micro_batch(kind, _rows(kind, parts.meter, example))
    most = max(examples, key=lambda kind: kind[0] * kind[2] * _steps(recipe, kind))
    times = probe.times_by_task(most, _rows(most, parts.meter, examples[most]))
    stepping = probe.optimizer()
    samples = 0.0
    spent = dict.fromkeys(examples, 0.0)
    for stage in recipe.stages:
        shares = {length: share for length, share in stage.frames.items() if share > 0}
        for length, share in shares.items():
            kind = (length, stage.crop, stage.batch[length] // plan.world)
            part = share / sum(shares.values()) * stage.steps
            computing = micro[kind] * (1.0 if length == 1 else times(stage))
            spent[kind] += part * (count * _with_loading(source, computing, loads[kind]) + stepping)
            samples += part * stage.batch[length] * count
    estimate.training = sum(spent.values())
    estimate.steps = {kind: seconds / _steps(recipe, kind) for kind, seconds in spent.items()}
    estimate.samples_per_second = samples / max(estimate.training, 1e-9)
    if recipe.every.validate_:
        times_validated = -(-recipe.total_steps // recipe.every.validate_)
        estimate.validation = times_validated * _validation_seconds(parts.objective, micro)


def _rows(kind: Kind, meter: Meter, example: Batch) -> int:
    """As many of a micro-batch's rows as are measured."""
    able = _USUAL_UTILISATION * (meter.peak_flops or float("inf"))
    expected = meter.flops.get(shape_key(example), 0) / able
    return max(1, min(kind[2], int(kind[2] * _LONGEST_MICRO_BATCH / max(expected, 1e-9))))


def _with_loading(source: Source, computing: float, loading: float) -> float:
    workers = workers_of(source)
    beside = workers and (os.cpu_count() or 1) > torch.get_num_threads()
    return max(computing, loading / workers) if beside else computing + loading


def _steps(recipe: Recipe, kind: Kind) -> float:
    """How many steps of a run are of a kind."""
    length, crop, size = kind
    world = int(os.environ.get("WORLD_SIZE", "1"))
    own = [s for s in recipe.stages if s.crop == crop and s.batch.get(length, 0) // world == size]
    return sum(stage.steps * stage.frames.get(length, 0) / sum(stage.frames.values()) for stage in own)


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


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.3g} min" if seconds < 6000 else f"{seconds / 3600:.3g} h"
