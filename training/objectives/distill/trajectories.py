"""A teacher's trajectories: where its samples stand at each step that a student will take, integrated once and kept.

Shards are written atomically and hold a fixed number of trajectories, so an interrupted or enlarged cache goes on where
it ended. Their folder is named after everything that decides their content.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from vgen.errors import CheckpointError, RequestError
from vgen.training.control import Control
from vgen.training.data.plan import Batch, Draw
from vgen.training.data.prompts import Prompts, SpritePrompts
from vgen.training.data.shards import CachedBatches, Shard, ShardCache, cut_text, read_shards
from vgen.training.judge.judge import score
from vgen.training.objectives.distill.config import TrajectoryConfig
from vgen.training.objectives.distill.teacher import Layout, Teacher, decode_tokens
from vgen.training.randomness import generator

SHARD = 64
"""Trajectories a file."""

_TRIAL = 4  # are integrated to tell what the others will take


class TrajectoryCache(ShardCache):
    """Trajectories by task and clip length.

    Args:
        config: how many of each, and where they are kept.
        teacher: integrates what is missing.
        teacher_hash: names its weights.
        prompts: of trajectory i; complete ones of SpriteWorld where trajectories are judged.
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
        if config.judged:
            told += "|judged"
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

    def shards(self) -> Iterator[Shard]:
        """See ShardCache."""
        for (task, num_frames), count in self.groups.items():
            for shard, path in enumerate(self._paths(task, num_frames)):
                begin = shard * SHARD
                told = f"integrating the teacher, {num_frames} frames ({task}): {begin} of {count}"
                yield Shard(path, told, partial(self.integrate, task, num_frames, range(begin, begin + SHARD)))

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
            if self.config.judged:
                parts[-1]["right"] = self._judge(task, num_frames, chosen, parts[-1]["states"][:, -1])
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _judge(self, task: str, num_frames: int, indices: range, ends: Tensor) -> Tensor:
        """Bool [B]: whether the clips of finished tokens show what their prompts say."""
        assert isinstance(self.prompts, SpritePrompts)
        tokens = ends[:, self.teacher.layout(task, num_frames).num_extra :]
        clips = decode_tokens(self.teacher.pipeline, tokens, num_frames)
        keys = [self.prompts.key(index, num_frames) for index in indices]
        return torch.tensor([score(clip, key).joint for clip, key in zip(clips, keys, strict=True)])

    def load(self) -> None:
        """Read all shards; they must have been integrated.

        Raises:
            RequestError: they are judged, and none of a kind is right.
        """
        for (task, num_frames), count in self.groups.items():
            read = read_shards(self._paths(task, num_frames))
            self._groups[task, num_frames] = {name: value[:count] for name, value in read.items()}
            if self.config.judged:
                self._keep_right(task, num_frames)
            self._layouts[task, num_frames] = self.teacher.layout(task, num_frames)

    def _keep_right(self, task: str, num_frames: int) -> None:
        group = self._groups[task, num_frames]
        right = group.pop("right").bool()
        if not bool(right.any()):
            raise RequestError(
                f"objective.trajectories: the teacher got none of {len(right)} clips of {num_frames} frames ({task}) "
                "right, and judged=true learns from right ones alone; use false, or more of them."
            )
        self._groups[task, num_frames] = {name: value[right] for name, value in group.items()}

    @property
    def nbytes(self) -> int:
        """What the trajectories take in memory once they are read."""
        total = 0
        for key, group in self._groups.items():
            total += sum(value.nbytes // len(value) for value in group.values()) * self.groups[key]
        return total

    def missing(self) -> dict[tuple[str, int], int]:
        """How many trajectories of each task and length are still to be integrated."""
        return {key: SHARD * sum(not path.exists() for path in self._paths(*key)) for key in self.groups}

    def missing_seconds(self, clock: Callable[[], float]) -> float:
        """What integrating the rest will take, from a few of each kind; `clock` is what seconds are read from."""
        total, control = 0.0, Control(self.folder)
        for (task, num_frames), missing in self.missing().items():
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
            "states" [B, num_steps + 1, T, C], "prompt_embeds" [B, L, D], "attention_mask" [B, L], "strength" [B, T]
            and "coordinates" [B, 3, T], the same for all, "indices" [B].
        """
        group, layout = self._groups[task, num_frames], self._layouts[task, num_frames]
        rows = torch.tensor(indices) % len(group["states"])
        embeds, mask = cut_text(group["prompt_embeds"][rows], group["attention_mask"][rows])
        return {
            "states": group["states"][rows],
            "prompt_embeds": embeds,
            "attention_mask": mask,
            "strength": layout.strength.expand(len(rows), -1),
            "coordinates": layout.coordinates.expand(len(rows), -1, -1),
            "indices": rows,
        }

    def _paths(self, task: str, num_frames: int) -> list[Path]:
        shards = range(-(-self.groups[task, num_frames] // SHARD))
        return [self.folder / f"{task}-{num_frames}" / f"{shard:05d}.safetensors" for shard in shards]


class Trajectories(CachedBatches[TrajectoryCache]):
    """The cache as a source of batches."""

    def load(self, draw: Draw) -> Batch:
        """A batch of one task, drawn by the number of its trajectories; see `TrajectoryCache.rows`."""
        counts = {task: count for (task, length), count in self.cache.groups.items() if length == draw.num_frames}
        shares = torch.tensor([float(count) for count in counts.values()])
        task = list(counts)[int(torch.multinomial(shares, 1, generator=draw.keys.generator("task")))]
        return self.cache.rows(task, draw.num_frames, draw.indices)
