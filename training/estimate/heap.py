"""The memory of a whole run on a CPU, rehearsed in the order of the run, on the heap that the run would have.

What a process holds there is more than its tensors: the heap keeps what was freed, in holes that later tensors do not
always fit into, and the libraries keep a kernel for every new shape. The rehearsal puts blocks that are never written
to where the tensors would be (`vgen.engine.memory.allocator.StandIns`), so that the holes come about as they would.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from functools import partial

import psutil
import torch

from vgen.engine.memory.allocator import StandIns, heap, return_freed_memory
from vgen.engine.memory.coding import decoding_peak, encoding_peak
from vgen.engine.memory.rehearsal import standing_in
from vgen.models import CausalVideoVAE
from vgen.training.cost.rehearsal import peak_bytes
from vgen.training.data.clips import SpriteClips
from vgen.training.data.footage.pixel_source import FootageClips
from vgen.training.data.plan import PREFETCHED, Batch, BatchPlan, Source, workers_of
from vgen.training.estimate.timing import Probe
from vgen.training.objectives.base import Objective
from vgen.training.objectives.flow.finetune import FineTuneObjective
from vgen.training.objectives.flow.flow import FlowObjective
from vgen.training.objectives.flow.tasks import CACHED_TASKS
from vgen.training.objectives.vae.vae import VaeObjective
from vgen.training.precision import autocasts
from vgen.training.recipe import Recipe
from vgen.types import VideoShape

_CHUNK = 16
"""Clips that validation encodes together."""
_DRAWN = 256
"""Most steps whose batches are looked at to count their shapes."""
_COPIES = 2
"""Of the weights while a checkpoint is written: their own and their average's; what is written is not copied again."""

Phase = Callable[[], object]


def process_peak(
    recipe: Recipe,
    objective: Objective,
    source: Source,
    plan: BatchPlan,
    examples: Iterable[Batch],
    probe: Probe,
    encodes: bool,
) -> int | None:
    """Most bytes that a process holds over a run on the CPU; None where the C library does not tell about its heap.

    To be called once the run's parts are there and micro-batches have run: what they loaded counts.

    Args:
        recipe: of the run.
        objective: with its weights, optimiser state and average in memory.
        source: of its batches.
        plan: of its steps.
        examples: micro-batches of every kind, without content.
        probe: has run micro-batches; what libraries keep for their shapes is there already.
        encodes: whether the latent cache is still to be filled.
    """
    gc.collect()
    return_freed_memory()
    began = heap()
    if began is None:
        return None
    beside = max(0, int(psutil.Process().memory_info().rss) - began.used)
    examples = list(examples)
    steps = [phase for batch in examples for phase in _step(recipe, objective, batch)]
    ahead = max(sum(value.nbytes for value in batch.values()) for batch in examples)
    with standing_in() as stand_ins:
        if encodes:
            for phase in encoding(objective):
                phase()
        held = [stand_ins.take(getattr(getattr(source, "cache", None), "nbytes", 0))]
        if workers_of(source):
            held += [stand_ins.take(ahead) for _ in range(PREFETCHED)]
        for phase in [*steps, *validation(objective)]:
            phase()
        _checkpoint(objective, stand_ins)
        for phase in steps:
            phase()
        for place in held:
            stand_ins.drop(place)
        peak = stand_ins.peak
    return beside + peak + int(probe.kept * len(shapes_of_batches(plan, source) - probe.shapes))


def _step(recipe: Recipe, objective: Objective, batch: Batch) -> list[Phase]:
    bfloat16 = autocasts(recipe)
    told = (objective, objective.rehearse, batch, "cpu", bfloat16)
    phases: list[Phase] = [partial(peak_bytes, *told)]
    if isinstance(objective, FlowObjective) and objective.drawn_tasks() - set(CACHED_TASKS) and "latents" in batch:
        rows, _, frames = batch["latents"].shape[:3]
        length = 1 + (frames - 1) * objective.strides.temporal
        data = objective.data
        phases.append(partial(coding, encoding_peak, objective.vae, length, data.height, data.width, rows))
    phases.append(partial(peak_bytes, objective, objective.rehearse_most, batch, "cpu", bfloat16))
    return phases


def encoding(objective: Objective) -> list[Phase]:
    """What filling the latent cache does."""
    if not isinstance(objective, FlowObjective):
        return []
    config, data = objective.config.latents, objective.data
    return [
        partial(coding, encoding_peak, objective.vae, frames, data.height, data.width, config.batch)
        for frames in sorted(config.groups)
    ]


def validation(objective: Objective) -> list[Phase]:
    """What validation codes."""
    if isinstance(objective, FlowObjective):
        config, data, vae = objective.config, objective.data, objective.vae
        told = (vae, config.validation_frames, data.height, data.width)
        phases: list[Phase] = [partial(coding, encoding_peak, *told, min(_CHUNK, config.validation_clips))]
        if config.sample_clips:
            phases.append(partial(coding, decoding_peak, *told, config.sample_clips))
        return phases
    if isinstance(objective, VaeObjective):
        settings, size, vae = objective.config, canvas_of(objective.clips), objective.vae
        found: list[Phase] = []
        for frames, count in (
            (1, 4 * settings.validation_clips),
            (settings.validation_frames, settings.validation_clips),
        ):
            told = (vae, frames, *size)
            found += [partial(coding, peak, *told, min(_CHUNK, count)) for peak in (encoding_peak, decoding_peak)]
        return found
    if isinstance(objective, FineTuneObjective) and objective.config.sample_clips:
        buckets = {sample.bucket for sample in objective.source.samples}
        vae = objective.pipeline.vae
        return [partial(coding, decoding_peak, vae, b.num_frames, b.height, b.width, 1) for b in sorted(buckets)]
    return []


def coding(peak: Callable[..., int], vae: CausalVideoVAE, num_frames: int, height: int, width: int, batch: int) -> int:
    """Bytes that the VAE takes for some clips."""
    return int(peak(vae, VideoShape(num_frames, height, width).latent(vae.strides), batch))


def _checkpoint(objective: Objective, stand_ins: StandIns) -> None:
    sizes = [value.nbytes for value in objective.parameters() if value.requires_grad]
    held = [stand_ins.take(size) for _ in range(_COPIES) for size in sizes]
    stand_ins.look()
    for place in held:
        stand_ins.drop(place)


def shapes_of_batches(plan: BatchPlan, source: Source) -> set[tuple[torch.Size, ...]]:
    """What the batches of a run look like; text is as long as the longest of a batch."""
    steps = range(0, plan.total_steps, -(-plan.total_steps // _DRAWN))
    return {tuple(value.shape for value in source.load(plan.draw(step, 0, source)).values()) for step in steps}


def canvas_of(clips: SpriteClips | FootageClips) -> tuple[int, int]:
    """Rows and columns of the largest clips."""
    if isinstance(clips, SpriteClips):
        return clips.config.height, clips.config.width
    largest = max((sample.bucket for sample in clips.samples), key=lambda bucket: bucket.height * bucket.width)
    return largest.height, largest.width
