"""Every draw equals one that is computed here from its key alone, and no two places share one."""

from __future__ import annotations

import hashlib
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from vgen.training.config.data import SpritesConfig
from vgen.training.config.stages import Stage, TaskMix
from vgen.training.data.clips import SpriteClips
from vgen.training.data.plan import RENDERED, BatchPlan, Draw
from vgen.training.objectives.flow.build import build_scheduler
from vgen.training.objectives.flow.config import FlowObjectiveConfig
from vgen.training.objectives.flow.flow import FlowObjective
from vgen.training.objectives.flow.given_material import region_masks
from vgen.training.objectives.flow.material import SpriteMaterial
from vgen.training.objectives.flow.tasks import TASKS, draw_task
from vgen.training.randomness import Keys
from vgen.types import Strides

SEED, WORLD = 5, 2
PLACES = list(product((0, 1, 7), (0, 1, 2)))
"""(step, micro-step)."""


def _generator(purpose: str, step: int, micro: int, row: int = 0, seed: int = SEED) -> torch.Generator:
    digest = hashlib.blake2b(f"{seed}|{purpose}|{step}|{micro}|{row}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def _distinct(rows: list[torch.Tensor]) -> bool:
    return len({tuple(row.flatten().tolist()) for row in rows}) == len(rows)


def test_noise_is_that_of_its_row_micro_step_and_step() -> None:
    made = []
    for (step, micro), rank in product(PLACES, range(WORLD)):
        noise = Keys(SEED, step, micro, rank, WORLD).normal("noise", (3, 5, 4))
        for row, values in enumerate(noise, 3 * rank):
            assert torch.equal(values, torch.randn(5, 4, generator=_generator("noise", step, micro, row)))
        made += list(noise)
    assert _distinct(made) and len(made) == len(PLACES) * WORLD * 3
    other = Keys(SEED + 1, 0).normal("noise", (1, 5, 4))[0], Keys(SEED, 0).normal("posterior", (1, 5, 4))[0]
    assert _distinct([made[0], *other]), "another seed, another purpose"


def test_rows_are_parts_of_one_draw_for_the_whole_batch() -> None:
    made = []
    for step, micro in PLACES:
        whole = torch.rand(3 * WORLD, 2, generator=_generator("captions", step, micro))
        for rank in range(WORLD):
            keys = Keys(SEED, step, micro, rank, WORLD)
            part = keys.rows("captions", 3, lambda rows, drawn: torch.rand(rows, 2, generator=drawn))
            assert torch.equal(part, whole[3 * rank : 3 * rank + 3])
            made += list(part)
            assert torch.equal(
                torch.rand(4, generator=keys.generator("task")),
                torch.rand(4, generator=_generator("task", step, micro)),
            )
    assert _distinct(made)


def test_tasks_and_numbers_change_from_micro_step_to_micro_step() -> None:
    mix = TaskMix(**dict.fromkeys(TASKS, 1.0))
    drawn = [draw_task(mix, 3, Keys(SEED, step, micro)) for step in range(8) for micro in range(4)]
    shares = torch.full((len(TASKS),), 1.0, dtype=torch.float64)
    expected = [
        TASKS[int(torch.multinomial(shares, 1, generator=_generator("task", step, micro)))]
        for step in range(8)
        for micro in range(4)
    ]
    assert drawn == expected and len(set(drawn)) > 4
    assert any(drawn[4 * step] != drawn[4 * step + 1] for step in range(8)), "not one task per step"
    numbers = {Keys(SEED, step, micro).number("layers") for step, micro in PLACES}
    assert len(numbers) == len(PLACES)


def test_samples_are_those_of_their_rank_micro_step_and_step() -> None:
    class Numbers:
        fingerprint = ""

        def size(self, num_frames: int) -> int:
            return 1_000_000

        def load(self, draw: Draw) -> Any:
            raise AssertionError

    stages, seen = [Stage(steps=8, frames={5: 1.0}, batch={5: 6})], []
    for (step, micro), rank in product(PLACES, range(WORLD)):
        draw = BatchPlan(stages, SEED, rank, WORLD).draw(step, micro, Numbers())
        assert draw.keys == Keys(SEED, step, micro, rank, WORLD)
        order = torch.randint(1_000_000, (6,), generator=_generator("order", step, micro)).tolist()
        assert draw.indices == order[3 * rank : 3 * rank + 3]
        seen += draw.indices
    assert len(set(seen)) == len(seen)


def _boxes(step: int, micro: int, height: int, width: int) -> np.ndarray:
    """The masks of a still region for the whole batch, computed from the key: [rows, H, W], 1 = given."""
    draws = torch.rand(3 * WORLD, 8, generator=_generator("region", step, micro)).double().numpy()
    masks = np.zeros((3 * WORLD, height, width), np.float32)
    for mask, (tall, wide, top, left, *_, hidden) in zip(masks, draws, strict=True):
        rows, columns = (round(side * (0.25 + 0.5 * share)) for side, share in ((height, tall), (width, wide)))
        first_row, first_column = (height - rows) * top, (width - columns) * left
        y, x = np.arange(height)[:, None], np.arange(width)
        inside = (y >= first_row) & (y < first_row + rows) & (x >= first_column) & (x < first_column + columns)
        mask[:] = ~inside if hidden < 0.5 else inside
    return masks


def test_regions_are_those_of_their_key() -> None:
    made = []
    for (step, micro), rank in product(PLACES, range(WORLD)):
        masks = region_masks(3, 5, 40, 48, Keys(SEED, step, micro, rank, WORLD))
        expected = _boxes(step, micro, 40, 48)[3 * rank : 3 * rank + 3]
        np.testing.assert_array_equal(masks[:, 0, 0].numpy(), expected)
        made += list(masks)
    assert _distinct(made)


@pytest.fixture(scope="module")
def objective() -> FlowObjective:
    config = FlowObjectiveConfig.model_validate(
        {"kind": "flow", "vae": "x", "model": {}, "latents": {"groups": {5: 4}}, "tasks": {"text": 1.0}}
    )
    stages = [
        Stage(steps=9, frames={5: 1.0}, batch={5: 6}, tasks=TaskMix(**{**dict.fromkeys(TASKS, 0.0), "region": 1}))
    ]
    clips = SpriteClips(SpritesConfig(tier=1, height=16, width=16))
    nothing: Any = None
    vae: Any = SimpleNamespace(strides=Strides(4, 8, 8))
    pipeline: Any = SimpleNamespace(transformer=nothing, vae=vae, patch_size=1, scheduler=build_scheduler(config))
    material = SpriteMaterial(config, clips, clips, nothing, vae)
    return FlowObjective(config, pipeline, material, BatchPlan(stages, SEED), nothing)


def test_what_is_prepared_for_a_flow_is_of_its_key(objective: FlowObjective) -> None:
    """Noise, sigma and the rendered clips of a micro-batch, as a worker makes them ahead of the step."""
    made = []
    for (step, micro), rank in product(PLACES[:4], range(WORLD)):
        keys = Keys(SEED, step, micro, rank, WORLD)
        batch = {"latents": torch.zeros(3, 4, 2, 2, 2), "indices": torch.tensor([4, 1, 3])}
        prepared = objective.prepare(batch, keys)
        for row, noise in enumerate(prepared["noise"], 3 * rank):
            assert torch.equal(noise, torch.randn(8, 4, generator=_generator("noise", step, micro, row)))
        assert torch.equal(
            prepared[RENDERED], SpriteClips(SpritesConfig(tier=1, height=16, width=16)).stack([4, 1, 3], 5)["frames"]
        )
        made += list(prepared["noise"])
        whole_batch: Any = SimpleNamespace(step=step, rows=_one_draw(step, micro))
        sigma = objective.sigma(batch["latents"], keys)
        whole = objective.sigma(torch.zeros(6, 4, 2, 2, 2), whole_batch)
        assert torch.equal(sigma, whole[3 * rank : 3 * rank + 3])
    assert _distinct(made)


def _one_draw(step: int, micro: int) -> Any:
    return lambda purpose, count, draw: draw(count, _generator(purpose, step, micro))
