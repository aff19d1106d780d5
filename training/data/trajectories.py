"""A teacher's trajectories: where its samples stand at each step that a student will take, integrated once and kept.

Shards are written atomically and hold a fixed number of trajectories, so an interrupted or enlarged cache goes on where
it ended. Their folder is named after everything that decides their content.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vgen.diffusion.tokens import pack
from vgen.errors import CheckpointError
from vgen.io.atomic import part_of
from vgen.pipelines import ImageToVideoPipeline, TextToVideoPipeline
from vgen.pipelines.conditioning import VideoCondition
from vgen.pipelines.strategies import set_schedule
from vgen.training.config_distill import TrajectoryConfig
from vgen.training.control import Control
from vgen.training.data.plan import Batch, Draw
from vgen.training.data.prompts import Prompts
from vgen.training.randomness import generator

SHARD = 64
"""Trajectories a file."""

_TRIAL = 4  # are integrated to tell what the others will take

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Layout(NamedTuple):
    """Tokens of a task: `strength` [T], 1 where given; `coordinates` [3, T]; how many are extra, before the video's."""

    strength: Tensor
    coordinates: Tensor
    num_extra: int


class Teacher:
    """Integrates samples of a pipeline, through its own denoising loop.

    Args:
        pipeline: of any folder; its defaults say size and frame rate, and what the caller leaves out.
        num_steps: of the student; the grid is the schedule that the pipeline would take for so many.
        config: substeps and number format.
        guidance_scale: None takes the pipeline's default.
    Attributes:
        grid: the student's sigmas, num_steps of them, without the final 0.
        guidance_scale: of the teacher.
    """

    def __init__(
        self,
        pipeline: TextToVideoPipeline,
        num_steps: int,
        config: TrajectoryConfig,
        guidance_scale: float | None = None,
    ) -> None:
        self.pipeline = pipeline
        self.config = config
        self.settings = pipeline.fill_settings({"prompt": "", "guidance_scale": guidance_scale})
        self.guidance_scale = self.settings.guidance_scale
        self.grid = self._schedule(num_steps)
        self.fine = self._fine_schedule()

    def describe(self) -> str:
        """What decides a trajectory beside the weights, the prompt and the noise."""
        settings = self.settings
        size = (settings.height, settings.width, settings.frame_rate, settings.max_sequence_length)
        text = (self.guidance_scale, settings.guidance_rescale, settings.negative_prompt)
        return f"{self.grid}|{self.fine}|{size}|{text}|{self.config.dtype}"

    def layout(self, task: str, num_frames: int) -> Layout:
        """Where the tokens of a task lie, and which are given."""
        pipeline, settings = self._pipeline(task), self._settings(num_frames, prompt="")
        picture = torch.zeros(3, self.settings.height, self.settings.width)
        filled = pipeline.fill_settings(settings)
        shape, given = pipeline.check_inputs(filled, [VideoCondition(picture)] if task == "first" else ())
        _, known = pipeline.prepare_latents(filled, shape, given, pipeline._execution_device)
        return Layout(known.strength[0].float().cpu(), known.coordinates[0].cpu(), known.num_extra)

    def noise(self, num_frames: int, sources: list[torch.Generator]) -> Tensor:
        """Noise [B, C, f, h, w] for clips of that length, one generator a clip."""
        filled = self.pipeline.fill_settings(self._settings(num_frames, prompt=""))
        shape, _ = self.pipeline.check_inputs(filled)
        channels = self.pipeline.vae.config.latent_channels
        return torch.stack([torch.randn(channels, *shape, generator=source) for source in sources])

    @torch.no_grad()
    def integrate(
        self, prompts: list[str], noise: Tensor, control: Control, pictures: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Trajectories of a batch.

        Args:
            prompts: B of them.
            noise: [B, C, f, h, w].
            control: asked at every step whether to stop.
            pictures: [B, 3, H, W] in [0, 1], the given first frames; None gives none.
        Returns:
            "states" float32 [B, num_steps + 1, T, C], the last the finished one; "prompt_embeds" [B, L, D];
            "attention_mask" bool [B, L].
        Raises:
            StopRequested: asked to stop.
        """
        settings, device = self.settings, self.pipeline._execution_device
        text = self.pipeline.encode_prompt(
            prompts, settings.negative_prompt, max_sequence_length=settings.max_sequence_length, device=device
        )
        states: list[Tensor] = []

        def keep(pipeline: Any, index: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Any]:
            control.poll()
            if (index + 1) % self.config.substeps == 0:
                states.append(tensors["latents"].float().cpu())
            return {}

        num_frames = 1 + (noise.shape[2] - 1) * self.pipeline.vae.strides.temporal
        pipeline = self._pipeline("text" if pictures is None else "first")
        dtype = _DTYPES[self.config.dtype]
        with torch.autocast(device.type, dtype, enabled=dtype is torch.bfloat16):
            pipeline(
                **({} if pictures is None else {"image": pictures}),
                **self._settings(
                    num_frames,
                    prompt_embeds=text.prompt_embeds,
                    prompt_attention_mask=text.prompt_attention_mask,
                    negative_prompt_embeds=text.negative_prompt_embeds,
                    negative_prompt_attention_mask=text.negative_prompt_attention_mask,
                    latents=noise,
                    sigmas=self.fine,
                    guidance_scale=self.guidance_scale,
                    image_cond_noise_scale=0.0,
                    output_type="latent",
                    callback_on_step_end=keep,
                ),
            )
        start = _begin(noise, states[0], self.layout("text" if pictures is None else "first", num_frames), pipeline)
        return {
            "states": torch.stack([start, *states], dim=1),
            "prompt_embeds": text.prompt_embeds.to("cpu", dtype),
            "attention_mask": text.prompt_attention_mask.bool().cpu(),
        }

    def _pipeline(self, task: str) -> Any:
        if task == "text":
            return self.pipeline
        animate = ImageToVideoPipeline(**self.pipeline.components)
        animate.set_progress_bar_config(disable=True)
        return animate

    def _settings(self, num_frames: int, **settings: Any) -> dict[str, Any]:
        return {"num_frames": num_frames, **settings}

    def _schedule(self, num_steps: int) -> tuple[float, ...]:
        """The sigmas that the pipeline takes for so many steps at its default size, without the final 0."""
        filled = self.pipeline.fill_settings({"prompt": "", "num_inference_steps": num_steps})
        shape, _ = self.pipeline.check_inputs(filled)
        tokens = shape.frames * shape.height * shape.width // self.pipeline.patch_size**2
        scheduler = self.pipeline.scheduler
        set_schedule(scheduler, filled, tokens, self.pipeline.convention, torch.device("cpu"))
        return tuple(float(sigma) for sigma in scheduler.sigmas[:-1])

    def _fine_schedule(self) -> tuple[float, ...]:
        """`substeps` steps between any two sigmas of the grid.

        The pipeline's own schedule for so many steps where it passes through the grid, else even steps.
        """
        grid, substeps = self.grid, self.config.substeps
        own = self._schedule(len(grid) * substeps)
        if all(abs(a - b) < 1e-6 for a, b in zip(own[::substeps], grid, strict=True)):
            return own
        ends = (*grid[1:], 0.0)
        return tuple(
            begin + (end - begin) * step / substeps
            for begin, end in zip(grid, ends, strict=True)
            for step in range(substeps)
        )


def _begin(noise: Tensor, after: Tensor, layout: Layout, pipeline: Any) -> Tensor:
    """State 0 [B, T, C]: noise; what is given stands there from the start and never moves."""
    tokens = pack(noise, pipeline.patch_size)
    tokens = torch.cat([after[:, : layout.num_extra], tokens], dim=1)
    return torch.where(layout.strength[None, :, None] > 0, after, tokens)


class TrajectoryCache:
    """Trajectories by task and clip length.

    Args:
        config: how many of each, and where they are kept.
        teacher: integrates what is missing.
        teacher_hash: names its weights.
        prompts: of trajectory i.
        seed: of the noise.
        folder: used when the config names none.
    """

    def __init__(
        self, config: TrajectoryConfig, teacher: Teacher, teacher_hash: str, prompts: Prompts, seed: int, folder: Path
    ) -> None:
        self.config = config
        self.teacher = teacher
        self.prompts = prompts
        self.seed = seed
        told = f"{teacher_hash}|{teacher.describe()}|{prompts.fingerprint}|{seed}|{SHARD}"
        key = hashlib.sha256(told.encode()).hexdigest()[:16]
        self.folder = (config.folder if config.folder is not None else folder) / key
        self._groups: dict[tuple[str, int], dict[str, Tensor]] = {}
        self._layouts: dict[tuple[str, int], Layout] = {}

    @property
    def groups(self) -> dict[tuple[str, int], int]:
        """Number of trajectories by (task, num_frames)."""
        found = {("text", length): count for length, count in sorted(self.config.text.items())}
        return found | {("first", length): count for length, count in sorted(self.config.first.items())}

    @property
    def fingerprint(self) -> str:
        """Changes with the teacher, its schedule, the prompts, or the number of trajectories of any kind."""
        return hashlib.sha256(f"{self.folder.name}|{self.groups}".encode()).hexdigest()[:16]

    def size(self, num_frames: int) -> int:
        """Number of trajectories of that length, of all tasks.

        Raises:
            CheckpointError: the recipe has none of that length.
        """
        found = sum(count for (_, length), count in self.groups.items() if length == num_frames)
        if not found:
            have = ", ".join(map(str, sorted(self.config.text)))
            raise CheckpointError(
                f"num_frames={num_frames} is trained on but has no trajectories: add it to "
                f"objective.trajectories.text, which has {have}."
            )
        return found

    def encode_missing(
        self, control: Control, say: Callable[[str], None], process: int = 0, processes: int = 1
    ) -> None:
        """Integrate the shards that are not there yet.

        Args:
            control: asked at every step whether to stop.
            say: told what is being done.
            process, processes: of several processes, each integrates its share.
        Raises:
            StopRequested: asked to stop; finished shards stay.
        """
        for (task, num_frames), count in self.groups.items():
            for shard in range(process, _shards(count), processes):
                path = self._path(task, num_frames, shard)
                if path.exists():
                    continue
                say(f"integrating the teacher, {num_frames} frames ({task}): {shard * SHARD} of {count}")
                path.parent.mkdir(parents=True, exist_ok=True)
                found = self.integrate(task, num_frames, range(shard * SHARD, (shard + 1) * SHARD), control)
                with part_of(path, overwrite=True) as part:
                    save_file({name: value.contiguous() for name, value in found.items()}, part)

    def integrate(self, task: str, num_frames: int, indices: range, control: Control) -> dict[str, Tensor]:
        """Trajectories by index: each a function of its index alone (and, in bfloat16, of its batch)."""
        parts = []
        for begin in range(indices.start, indices.stop, self.config.batch):
            chosen = range(begin, min(begin + self.config.batch, indices.stop))
            noise = self.teacher.noise(
                num_frames, [generator(self.seed, f"trajectory {task}", index, num_frames) for index in chosen]
            )
            pictures = self.prompts.first_frames(chosen, num_frames) if task == "first" else None
            texts = [self.prompts.text(index, num_frames) for index in chosen]
            parts.append(self.teacher.integrate(texts, noise, control, pictures))
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def load(self) -> None:
        """Read all shards; they must have been integrated."""
        for (task, num_frames), count in self.groups.items():
            read = [load_file(self._path(task, num_frames, shard)) for shard in range(_shards(count))]
            self._groups[task, num_frames] = {
                name: torch.cat([part[name] for part in read])[:count] for name in read[0]
            }
            self._layouts[task, num_frames] = self.teacher.layout(task, num_frames)

    @property
    def nbytes(self) -> int:
        """What the trajectories take in memory once they are read."""
        total = 0
        for key, group in self._groups.items():
            total += sum(value.nbytes // len(value) for value in group.values()) * self.groups[key]
        return total

    def missing_seconds(self, clock: Callable[[], float]) -> float:
        """What integrating the rest will take, from a few of each kind; `clock` is what seconds are read from."""
        total, control = 0.0, Control(self.folder)
        for (task, num_frames), count in self.groups.items():
            shards = (self._path(task, num_frames, shard) for shard in range(_shards(count)))
            missing = SHARD * sum(not path.exists() for path in shards)
            rows = min(self.config.batch, missing, _TRIAL)
            if not rows:
                continue
            began = clock()
            self.integrate(task, num_frames, range(rows), control)
            total += (clock() - began) * missing / rows
        return total

    def load_blank(self) -> None:
        """Stand-ins of the right shapes that hold nothing, one of a kind: for a dry run, which integrates nothing."""
        pipeline, settings = self.teacher.pipeline, self.teacher.settings
        assert pipeline.text_encoder is not None
        channels = pipeline.vae.config.latent_channels * pipeline.patch_size**2
        width, length = pipeline.text_encoder.config.d_model, settings.max_sequence_length
        for task, num_frames in self.groups:
            layout = self.teacher.layout(task, num_frames)
            tokens = len(layout.strength)
            self._groups[task, num_frames] = {
                "states": torch.zeros(1, len(self.teacher.grid) + 1, tokens, channels),
                "prompt_embeds": torch.zeros(1, length, width),
                "attention_mask": torch.ones(1, length, dtype=torch.bool),
            }
            self._layouts[task, num_frames] = layout

    def rows(self, task: str, num_frames: int, indices: list[int]) -> Batch:
        """Trajectories by index (taken modulo their number); text is cut to the longest of them.

        Returns:
            "states" [B, num_steps + 1, T, C], "prompt_embeds" [B, L, D], "attention_mask" [B, L], "strength" [T],
            "coordinates" [3, T], "indices" [B].
        """
        group, layout = self._groups[task, num_frames], self._layouts[task, num_frames]
        rows = torch.tensor(indices) % len(group["states"])
        mask = group["attention_mask"][rows]
        length = int(mask.any(dim=0).nonzero().max()) + 1
        return {
            "states": group["states"][rows],
            "prompt_embeds": group["prompt_embeds"][rows, :length].float(),
            "attention_mask": mask[:, :length],
            "strength": layout.strength,
            "coordinates": layout.coordinates,
            "indices": rows,
        }

    def _path(self, task: str, num_frames: int, shard: int) -> Path:
        return self.folder / f"{task}-{num_frames}" / f"{shard:05d}.safetensors"


class Trajectories:
    """The cache as a source of batches.

    Args:
        cache: filled.
    """

    def __init__(self, cache: TrajectoryCache) -> None:
        self.cache = cache

    @property
    def fingerprint(self) -> str:
        """That of the cache."""
        return self.cache.fingerprint

    def size(self, num_frames: int) -> int:
        """Number of trajectories of that length."""
        return self.cache.size(num_frames)

    def load(self, draw: Draw) -> Batch:
        """A batch of one task, drawn by the number of its trajectories; see `TrajectoryCache.rows`."""
        counts = {task: count for (task, length), count in self.cache.groups.items() if length == draw.num_frames}
        shares = torch.tensor([float(count) for count in counts.values()])
        task = list(counts)[int(torch.multinomial(shares, 1, generator=draw.keys.generator("task")))]
        return self.cache.rows(task, draw.num_frames, draw.indices)


def _shards(count: int) -> int:
    return -(-count // SHARD)
