"""A teacher's trajectories: where its samples stand at each step that a student will take, integrated once and kept."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from vgen.errors import RequestError
from vgen.training.control import Control
from vgen.training.data.plan import Batch, Draw
from vgen.training.data.prompts import Prompts, SpritePrompts
from vgen.training.data.shards import CachedBatches, CachingCosts, ShardCache, Tensors, cut_text, rows_of
from vgen.training.judge.judge import score
from vgen.training.objectives.distill.config import TrajectoryConfig
from vgen.training.objectives.distill.teacher import Teacher, decode_tokens
from vgen.training.randomness import generator

Kind = tuple[str, int]
"""Task and num_frames."""


class TrajectoryCache(ShardCache[Kind]):
    """Trajectories by task and clip length: "states" [N, num_steps + 1, T, C], "prompt_embeds", "attention_mask".

    Args:
        config: how many of each, and where they are kept.
        teacher: integrates what is missing.
        teacher_hash: names its weights.
        prompts: of trajectory i; complete ones of SpriteWorld where trajectories are judged.
        seed: of the noise.
        folder: used when the config names none.
    """

    setting = "objective.trajectories.text"
    shard_size = 64

    def __init__(
        self, config: TrajectoryConfig, teacher: Teacher, teacher_hash: str, prompts: Prompts, seed: int, folder: Path
    ) -> None:
        self.config = config
        self.teacher = teacher
        self.prompts = prompts
        self.seed = seed
        self.trial = min(config.batch, self.trial)
        identity = f"{teacher_hash}|{teacher.describe()}|{prompts.fingerprint}|{seed}|{self.shard_size}"
        super().__init__(config.folder, folder, identity + ("|judged" if config.judged else ""))
        self._layout = lru_cache(maxsize=None)(teacher.layout)

    @property
    def groups(self) -> dict[Kind, int]:
        """See ShardCache."""
        chosen = {"text": self.config.text, "first": self.config.first}
        return {(task, length): count for task, counts in chosen.items() for length, count in sorted(counts.items())}

    def length(self, group: Kind) -> int:
        """See ShardCache."""
        return group[1]

    def contents(self) -> str:
        """See ShardCache."""
        return str(self.groups)

    def places(self, group: Kind) -> list[range]:
        """See ShardCache; all shards are whole, so that a larger number of trajectories uses them, too."""
        return [range(begin, begin + self.shard_size) for begin in range(0, self.groups[group], self.shard_size)]

    def path(self, group: Kind, places: range) -> Path:
        """See ShardCache."""
        return self.folder / f"{group[0]}-{group[1]}" / f"{places.start // self.shard_size:05d}.safetensors"

    def title(self, group: Kind) -> str:
        """See ShardCache."""
        return f"integrating the teacher, {group[1]} frames ({group[0]})"

    def make(self, group: Kind, places: range, control: Control) -> Tensors:
        """See ShardCache; in bfloat16 a trajectory depends on its batch as well."""
        (task, num_frames), parts = group, []
        for begin in range(places.start, places.stop, self.config.batch):
            chosen = range(begin, min(begin + self.config.batch, places.stop))
            noise = self.teacher.noise(
                num_frames, [generator(self.seed, f"trajectory {task}", index, num_frames) for index in chosen]
            )
            pictures = self.prompts.first_frames(chosen, num_frames) if task == "first" else None
            texts = [self.prompts.text(index, num_frames) for index in chosen]
            parts.append(self.teacher.integrate(texts, noise, control, pictures))
            if self.config.judged:
                parts[-1]["right"] = self._judge(group, chosen, parts[-1]["states"][:, -1])
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _judge(self, group: Kind, indices: range, ends: Tensor) -> Tensor:
        """Bool [B]: whether the clips of finished tokens show what their prompts say."""
        assert isinstance(self.prompts, SpritePrompts)
        tokens = ends[:, self._layout(*group).num_extra :]
        clips = decode_tokens(self.teacher.pipeline, tokens, group[1])
        keys = [self.prompts.key(index, group[1]) for index in indices]
        return torch.tensor([score(clip, key).joint for clip, key in zip(clips, keys, strict=True)])

    def chosen(self, group: Kind, read: Tensors, count: int) -> Tensors:
        """See ShardCache; where they are judged, the right ones.

        Raises:
            RequestError: none is right.
        """
        read = {name: value[:count] for name, value in read.items()}
        right = read.pop("right").bool() if self.config.judged else None
        if right is None:
            return read
        if not bool(right.any()):
            raise RequestError(
                f"objective.trajectories: the teacher got none of {len(right)} clips of {group[1]} frames ({group[0]}) "
                "right, and judged=true learns from right ones alone; use false, or more of them."
            )
        return {name: value[right] for name, value in read.items()}

    def blank(self, group: Kind) -> Tensors:
        """See ShardCache."""
        pipeline, length = self.teacher.pipeline, self.teacher.settings.max_sequence_length
        assert pipeline.text_encoder is not None
        channels = pipeline.vae.config.latent_channels * pipeline.patch_size**2
        return {
            "states": torch.zeros(1, len(self.teacher.grid) + 1, len(self._layout(*group).strength), channels),
            "prompt_embeds": torch.zeros(1, length, pipeline.text_encoder.config.d_model),
            "attention_mask": torch.ones(1, length, dtype=torch.bool),
        }

    def counted_seconds(self, costs: CachingCosts) -> float:
        """See ShardCache."""
        steps = len(self.teacher.fine) + self.config.draft_steps
        branches = 1 if self.teacher.guidance_scale == 1 else 2
        return sum(count * steps * branches * costs.forward(length) for (_, length), count in self.missing().items())

    def rows(self, task: str, num_frames: int, indices: list[int]) -> Batch:
        """Trajectories by index (taken modulo their number); text is cut to the longest of them.

        Returns:
            "states" [B, num_steps + 1, T, C], "prompt_embeds" [B, L, D], "attention_mask" [B, L], "strength" [B, T]
            and "coordinates" [B, 3, T], the same for all, "indices" [B].
        """
        found, rows = rows_of(self.loaded[task, num_frames], indices)
        layout = self._layout(task, num_frames)
        embeds, mask = cut_text(found["prompt_embeds"], found["attention_mask"])
        return {
            "states": found["states"],
            "prompt_embeds": embeds,
            "attention_mask": mask,
            "strength": layout.strength.expand(len(rows), -1),
            "coordinates": layout.coordinates.expand(len(rows), -1, -1),
            "indices": rows,
        }


class Trajectories(CachedBatches[TrajectoryCache]):
    """The cache as a source of batches."""

    def load(self, draw: Draw) -> Batch:
        """A batch of one task, drawn by the number of its trajectories; see `TrajectoryCache.rows`."""
        counts = {task: count for (task, length), count in self.cache.groups.items() if length == draw.num_frames}
        shares = torch.tensor([float(count) for count in counts.values()])
        task = list(counts)[int(torch.multinomial(shares, 1, generator=draw.keys.generator("task")))]
        return self.cache.rows(task, draw.num_frames, draw.indices)
