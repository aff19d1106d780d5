"""Seconds of micro-batches, of an optimiser's step and of filling a cache, from shapes alone: nothing of it is done.

Work is counted on the meta device (`vgen.training.estimate.work`). What was counted once is scaled for other recipes of
the same models; kinds of batches that are few cost per frame what the nearest others do.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import torch

from vgen.models import CausalVideoVAE
from vgen.models.empty import empty_model
from vgen.training.config.stages import Stage
from vgen.training.cost.rehearsal import run_on_meta
from vgen.training.cost.throughput import PLANAR
from vgen.training.data.latents import LatentCache
from vgen.training.data.plan import Batch, BatchPlan, Source
from vgen.training.data.shards import ShardCache
from vgen.training.estimate.timing import Kind, mean_over_tasks, only_task, steps_of, tasks_drawn
from vgen.training.estimate.work import Machine, Work, WorkCounter
from vgen.training.objectives.base import Objective
from vgen.training.objectives.distill.trajectories import TrajectoryCache
from vgen.training.objectives.flow.flow import FlowObjective
from vgen.training.objectives.flow.given_material import MOST_FRAMES
from vgen.training.objectives.flow.tasks import CACHED_TASKS, most_tokens_beside
from vgen.training.objectives.preference.pair_sources import PairFile
from vgen.training.objectives.preference.pairs import PairCache
from vgen.training.objectives.vae.vae import VaeObjective
from vgen.training.recipe import Recipe

_MINOR: Final = 0.1
"""Share of the steps below which a kind of batch is not counted for itself."""
_FORWARDS_OF_A_PAIR: Final = 8
_STEP_PASSES: Final = 26
"""Reads and writes of a weight's size that clipping, AdamW and the average make."""
_ENCODED: Final = 4
"""Clips that are encoded together where encoding is counted."""
_IRRELEVANT: Final = {
    "compile_blocks", "defaults", "guidance_scale", "inflate_before", "init", "kl_weight", "latents", "model",
    "pairs", "sample_clips", "sample_steps", "shift", "shift_terminal", "square_weight", "statistics_clips", "tasks",
    "text_drop", "text_encoder", "trajectories", "uniform_share", "vae", "validation_clips", "validation_frames",
    "validation_prompts", "validation_samples",
}  # fmt: skip
"""Settings of objectives that change no step's work, or change the models, which count for themselves."""

_counted: dict[str, tuple[int, Work]] = {}


class CountedTime:
    """Estimates what `vgen.training.estimate.timing.Probe` measures.

    Args:
        recipe: of the run.
        objective: without content.
        plan: of the run's steps.
        source: of its batches.
        examples: a micro-batch of every kind, without content.
        machine: that will work.
        clock: what the seconds of loading one sample are read from.
    """

    def __init__(
        self,
        recipe: Recipe,
        objective: Objective,
        plan: BatchPlan,
        source: Source,
        examples: dict[Kind, Batch],
        machine: Machine,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.recipe = recipe
        self.objective = objective
        self.plan = plan
        self.source = source
        self.examples = examples
        self.machine = machine
        self.clock = clock
        shares = {kind: steps_of(recipe, kind) / recipe.total_steps for kind in examples}
        # A transformer's work per token hardly depends on how many there are. A VAE's does, most of all in pictures.
        pixels = isinstance(objective, VaeObjective)
        pictures = {kind for kind in examples if pixels and kind[0] == 1}
        self._major: list[Kind] = []
        for group in (pictures, set(examples) - pictures):
            most = max((shares[kind] for kind in group), default=0.0)
            least = min(_MINOR, most) if pixels and group is not pictures else most
            self._major += [kind for kind in examples if kind in group and shares[kind] >= least]

    def micro_batch(self, kind: Kind) -> tuple[float, float]:
        """Seconds to load and to compute a micro-batch where nothing is given."""
        num_frames, crop, rows = kind
        draw = self.plan.draw(0, 0, self.source)
        began = self.clock()
        self.source.load(draw._replace(num_frames=num_frames, crop=crop, indices=[0]))
        loading = (self.clock() - began) * rows
        counted = min(
            self._major,
            key=lambda kind: ((kind[0] == 1) != (num_frames == 1), kind[1] != crop, abs(kind[0] - num_frames)),
        )
        work = self._step(counted, self.objective.rehearse, "")
        return loading, self.machine.seconds(work) * self._size(kind) / self._size(counted)

    def times_by_task(self, kind: Kind) -> Callable[[Stage], float]:
        """A stage's mean micro-batch in those where nothing is given, from one kind."""
        objective, seconds = self.objective, {}
        for task in tasks_drawn(objective, self.plan, kind):
            if task == "text":
                seconds[task] = self.machine.seconds(self._step(kind, objective.rehearse, ""))
                continue
            with only_task(objective, "first"):  # with a timestep of each token's own, and nothing next to the clip
                work = self._step(kind, objective.rehearse_most, "first")
            beside, latent_frames = self._beside(task, kind)
            seconds[task] = self.machine.seconds(work) * (1 + beside / latent_frames) + self._given(task, kind)
        return mean_over_tasks(objective, seconds)

    def optimizer(self) -> float:
        """Seconds of clipping, stepping and averaging."""
        trained = sum(value.numel() for value in self.objective.parameters() if value.requires_grad)
        return self.machine.moving(4 * _STEP_PASSES * trained)

    def caching(self, cache: ShardCache, forward: Callable[[int], float]) -> float:
        """Seconds to make what a cache has not.

        Args:
            cache: of the source.
            forward: seconds of one sample of a micro-batch of that many frames, forward.
        """
        if isinstance(cache, LatentCache):
            size = (cache.clips.config.height, cache.clips.config.width)
            total = 0.0
            for num_frames in cache.config.groups:
                missing = cache.missing(num_frames)
                if missing:
                    began = self.clock()
                    cache.clips.stack([0], num_frames)
                    rendering = self.clock() - began
                    last = self.encoding(cache.vae, 1, size) if num_frames > 1 else 0.0
                    total += missing * (rendering + self.encoding(cache.vae, num_frames, size) + last)
            return total
        if isinstance(cache, TrajectoryCache):
            teacher = cache.teacher
            steps = (len(teacher.fine) + cache.config.draft_steps) * _branches(teacher.guidance_scale)
            return sum(count * steps * forward(num_frames) for (_, num_frames), count in cache.missing().items())
        if isinstance(cache, PairCache):
            shape, maker = cache.config.num_frames, cache.maker
            size = (maker.settings.height, maker.settings.width)
            coding = 2 * self.encoding(maker.pipeline.vae, shape, size)
            if isinstance(cache.source, PairFile):
                return cache.missing() * coding
            steps = maker.settings.num_inference_steps * _branches(maker.settings.guidance_scale)
            # A row of a micro-batch is two clips, forward and backward, and both once more as they were.
            one = forward(shape) * 3 / _FORWARDS_OF_A_PAIR
            return cache.missing() * cache.config.clips * (steps * one + coding / 2)
        return 0.0

    def encoding(self, vae: CausalVideoVAE, num_frames: int, size: tuple[int, int]) -> float:
        """Seconds to encode a clip of that many frames and pixels."""
        key = f"encode|{vae.config}|{num_frames}|{size}"
        if key not in _counted:
            model: Any = empty_model("CausalVideoVAE", vae.config)
            with torch.no_grad(), WorkCounter() as counter:
                model.encode(torch.empty(_ENCODED, 3, num_frames, *size, device="meta"))
            _counted[key] = (_ENCODED, counter.work)
        rows, work = _counted[key]
        return self.machine.seconds(work) / rows

    def rendering(self, num_frames: int) -> float:
        """Seconds to render a clip, from one."""
        objective = self.objective
        assert isinstance(objective, FlowObjective)
        began = self.clock()
        objective.clips.stack([0], num_frames)
        return self.clock() - began

    def _size(self, kind: Kind) -> int:
        """What a micro-batch's work is proportional to, about."""
        return self.objective.tokens(self.examples[kind]) or kind[0] * kind[2]

    def _beside(self, task: str, kind: Kind) -> tuple[int, int]:
        """Latent frames that a task lays next to a clip, and those of the clip."""
        objective: Any = self.objective
        strides = objective.strides if isinstance(objective, FlowObjective) else objective.pipeline.vae.strides
        latent_frames = 1 + (kind[0] - 1) // strides.temporal
        return most_tokens_beside({task}, latent_frames, strides) or 0, latent_frames

    def _given(self, task: str, kind: Kind) -> float:
        """Seconds to make what a task gives in the step itself, and has not in the cache."""
        objective, (num_frames, _, rows) = self.objective, kind
        if not isinstance(objective, FlowObjective) or task in CACHED_TASKS:
            return 0.0
        size = (objective.data.height, objective.data.width)
        frames = {"reference": 1, "frames": min(MOST_FRAMES, num_frames)}.get(task)
        if frames is None:
            encoded = self.encoding(objective.vae, num_frames, size)
        else:
            encoded = frames * self.encoding(objective.vae, 1, size)
        return rows * (encoded + self.rendering(num_frames))

    def _step(self, kind: Kind, loss: Callable[[Batch], torch.Tensor], task: str) -> Work:
        """Forward and backward of a micro-batch."""
        batch = self.examples[kind]
        key = f"{task}|{described(self.objective, batch)}"
        if key not in _counted:
            with WorkCounter() as counter:
                run_on_meta(self.objective, loss, batch)
            _counted[key] = (kind[2], counter.work)
        rows, work = _counted[key]
        return work.times(kind[2] / rows)


def _branches(guidance_scale: float | list[float]) -> int:
    return 1 if guidance_scale == 1 else 2


def described(objective: Objective, batch: Batch) -> str:
    """All that the work of an objective's step depends on, but for the number of rows and the length of texts."""
    config: Any = getattr(objective, "config", None)
    settings = config.model_dump(exclude=_IRRELEVANT) if config is not None else {}
    settings = {name: bool(value) if name.endswith("_weight") else value for name, value in settings.items()}
    clips = sorted((name, tuple(value.shape[1:])) for name, value in batch.items() if value.ndim >= PLANAR)
    parts = [(name, str(getattr(part, "config", ""))) for name, part in objective.named_children()]
    shapes = [(name, tuple(value.shape), value.requires_grad) for name, value in objective.named_parameters()]
    ways = [str(getattr(part, "gradient_checkpointing", "")) for part in objective.modules()]
    return f"{type(objective).__name__}|{settings}|{parts}|{shapes}|{ways}|{clips}"
