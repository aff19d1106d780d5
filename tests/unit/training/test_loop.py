"""Values inside the training loop: the gradient that the optimiser gets, and the numbers that every place draws.

The loop, the batch plan and the objectives are the real ones; batches are random, and nothing is stepped or clipped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from vgen.diffusion.schedules import resolution_shift_mu, sample_training_sigmas
from vgen.models import CausalVideoVAE, VideoDiT
from vgen.training.config.data import SpritesConfig
from vgen.training.control import Control
from vgen.training.cost.throughput import Meter
from vgen.training.data.clips import SpriteClips
from vgen.training.data.plan import Batch, BatchPlan, Draw, batches
from vgen.training.loop import Run, train
from vgen.training.model_sources import embedded_tokenizer
from vgen.training.objectives.base import Objective
from vgen.training.objectives.distill.config import DistillObjectiveConfig
from vgen.training.objectives.distill.distill import DistillObjective
from vgen.training.objectives.flow import flow
from vgen.training.objectives.flow.build import build_scheduler, fine_tuned, from_nothing
from vgen.training.objectives.flow.config import FineTuneObjectiveConfig, FlowObjectiveConfig
from vgen.training.objectives.flow.draws import mu_of
from vgen.training.objectives.flow.material import FootageMaterial, SpriteMaterial
from vgen.training.objectives.flow.tasks import FlowInputs
from vgen.training.objectives.preference import preference
from vgen.training.objectives.preference.config import PreferenceObjectiveConfig
from vgen.training.objectives.preference.preference import PreferenceObjective
from vgen.training.objectives.vae.config import VaeObjectiveConfig
from vgen.training.objectives.vae.vae import VaeObjective
from vgen.training.randomness import Keys
from vgen.training.recipe import Recipe
from vgen.training.report.log import Journal

SEED, STEPS, MICRO, ROWS = 10, 2, 2, 4
LENGTH = 5
"""Frames: two latents."""
ONLY_TEXT = {"text": 1.0, "first": 0.0, "prefix": 0.0, "other": 0.0}
DIT: dict[str, Any] = {
    "num_attention_heads": 2, "attention_head_dim": 12, "cross_attention_dim": 24, "num_layers": 2,
    "rope_base_size": (4, 64, 64),
}  # fmt: skip
SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "flow": {"latents": (4, 2, 2, 3)},
    "finetune": {"latents": (4, 2, 2, 3), "prompt_embeds": (5, 16)},
    "preference": {"chosen": (4, 2, 2, 3), "rejected": (4, 2, 2, 3), "prompt_embeds": (5, 16)},
    "distill": {"states": (3, 12, 4), "prompt_embeds": (5, 16)},
    "vae": {},
}
OBJECTIVES = list(SHAPES)
DRAWS = ["flow", "finetune", "preference"]


def _dit() -> VideoDiT:
    model = VideoDiT(in_channels=4, out_channels=4, caption_channels=16, **DIT)
    with torch.no_grad():
        source = torch.Generator().manual_seed(3)
        for value in model.parameters():
            value.copy_(0.2 * torch.randn(value.shape, generator=source))
    return model


class Rows:
    """Random samples, each a function of its index."""

    fingerprint = "rows"

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def size(self, num_frames: int) -> int:
        return 10_000

    def load(self, draw: Draw) -> Batch:
        rows = [self._row(index) for index in draw.indices]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def _row(self, index: int) -> Batch:
        source = torch.Generator().manual_seed(index)
        row = {name: torch.randn(shape, generator=source) for name, shape in SHAPES[self.kind].items()}
        row["indices"] = torch.tensor(index)
        if self.kind == "vae":
            row["frames"] = torch.randint(0, 256, (LENGTH, 16, 16, 3), generator=source, dtype=torch.uint8)
            row["masks"] = torch.ones(LENGTH, 16, 16, dtype=torch.bool)
        if self.kind == "flow":
            row["input_ids"] = torch.randint(3, 40, (6,), generator=source)
        mask = torch.arange(6 if self.kind == "flow" else 5) < 2 + index % 3
        row["prompt_attention_mask" if self.kind == "finetune" else "attention_mask"] = mask
        if self.kind == "distill":
            row["strength"] = (torch.arange(12) < 2).float()
            row["coordinates"] = torch.arange(36.0).reshape(3, 12)
        return row


@pytest.fixture
def objective_of(tiny_vae: CausalVideoVAE) -> Callable[[str], Objective]:
    """Makes an objective of a kind, with small models of its own; only text is given."""

    def make(kind: str) -> Objective:
        plan = BatchPlan(_recipe(1).stages, SEED)
        pipeline: Any = SimpleNamespace(
            transformer=_dit(), vae=tiny_vae, patch_size=1, scheduler=build_scheduler(_flow_config()),
            model_convention=SimpleNamespace(causal_coordinates=True, prefix_latent_frames=None),
        )  # fmt: skip
        nothing: Any = None
        if kind == "flow":
            data = SpritesConfig(frame_rate=8.0, height=16, width=24)
            clips = SpriteClips(data)
            words = embedded_tokenizer()
            material = SpriteMaterial(_flow_config(), clips, clips, words, tiny_vae)
            made = from_nothing(_flow_config(), material, plan, SEED)
            made.transformer.load_state_dict(_dit().state_dict())  # as built, its last layer is zero
            return made
        if kind == "finetune":
            source: Any = SimpleNamespace(frame_rate=lambda indices: 8.0)
            tuned = FineTuneObjectiveConfig(kind="finetune", model="x", mode="full", tasks=ONLY_TEXT)
            return fine_tuned(tuned, pipeline, FootageMaterial(tuned, source, tiny_vae.strides), plan, SEED)
        if kind == "preference":
            maker: Any = SimpleNamespace(pipeline=pipeline, settings=SimpleNamespace(frame_rate=8.0))
            wanted = PreferenceObjectiveConfig(kind="preference", model="x", pairs={}, flow_weight=0.3)
            moved = PreferenceObjective(wanted, maker, nothing, SEED)
            with torch.no_grad():  # away from the reference, where its loss is flat
                moved.transformer.proj_out.weight.mul_(1.1)
            return moved
        if kind == "distill":
            teacher: Any = SimpleNamespace(pipeline=pipeline, grid=(1.0, 0.6))
            few = DistillObjectiveConfig(kind="distill", teacher="x", num_steps=2, trajectories={"text": {LENGTH: 9}})
            return DistillObjective(few, teacher, nothing, SEED)
        pixels = VaeObjectiveConfig(kind="vae", model=dict(tiny_vae.config), square_weight=0.5, kl_weight=0.01)
        return VaeObjective(pixels, nothing, nothing, SEED)

    return make


def _flow_config() -> FlowObjectiveConfig:
    described = {
        "kind": "flow", "vae": "x", "model": DIT, "latents": {"groups": {LENGTH: 9}}, "tasks": ONLY_TEXT,
        "text_encoder": {"d_model": 16, "d_kv": 8, "d_ff": 24},
    }  # fmt: skip
    return FlowObjectiveConfig.model_validate(described)


def _recipe(accumulation: int) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "values", "seed": SEED, "device": "cpu", "gradient_accumulation": accumulation,
            "objective": {"kind": "vae", "model": {}}, "optimizer": {"max_grad_norm": 1e9},
            "stages": [{"steps": STEPS, "frames": {LENGTH: 1.0}, "batch": {LENGTH: ROWS}}],
            "every": {"log": 1, "checkpoint": 1000, "validate": 0},
        }
    )  # fmt: skip


class Gradients:
    """In the place of an optimiser: keeps what it is given."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.seen: list[dict[str, Tensor]] = []

    def zero_grad(self, set_to_none: bool) -> None:
        self.objective.zero_grad(set_to_none)

    def step(self) -> None:
        named = self.objective.named_parameters()
        self.seen.append({name: value.grad.clone() for name, value in named if value.grad is not None})

    def state_dict(self) -> dict[str, Any]:
        return {}


def _train(objective: Objective, source: Rows, folder: Path, rank: int = 0, world: int = 1) -> Gradients:
    """The recipe's steps through the product's loop; the weights stay."""
    recipe, gradients = _recipe(MICRO), Gradients(objective)
    stays: Any = SimpleNamespace(apply=lambda step: 0.0, update=lambda *_: None, state_dict=dict, kept={})
    unsaved: Any = SimpleNamespace(save=lambda state: None)
    plan = BatchPlan(recipe.stages, recipe.seed, rank, world)
    with Journal(folder / "log.jsonl", 0, STEPS, silent=True) as journal:
        optimizer: Any = gradients
        run = Run(
            recipe, folder, Accelerator(cpu=True), objective, objective, optimizer, stays, stays,
            batches(plan, source, 0, MICRO, 0, objective.prepare), unsaved, journal, Control(folder),
            Meter(objective, torch.device("cpu")), "", 0,
        )  # fmt: skip
        assert train(run)
    return gradients


class Joined(Keys):
    """The draws of several places, one after the other: those of the whole batch that they are the parts of."""

    places: tuple[Keys, ...]

    def normal(self, purpose: str, shape: Sequence[int]) -> Tensor:
        part = (shape[0] // len(self.places), *shape[1:])
        return torch.cat([keys.normal(purpose, part) for keys in self.places])

    def rows(self, purpose: str, count: int, draw: Callable[[int, torch.Generator], Tensor]) -> Tensor:
        return torch.cat([keys.rows(purpose, count // len(self.places), draw) for keys in self.places])

    def generator(self, purpose: str) -> torch.Generator:
        if purpose == "segment":  # a single draw for all rows: the test's seed gives all places the same
            assert len({int(torch.randint(2, (), generator=keys.generator(purpose))) for keys in self.places}) == 1
        return self.places[0].generator(purpose)


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_the_gradient_of_two_micro_batches_is_that_of_the_whole_batch(
    kind: str, objective_of: Callable[[str], Objective], tmp_path: Path
) -> None:
    objective, source = objective_of(kind), Rows(kind)
    seen = _train(objective, source, tmp_path).seen
    assert len(seen) == STEPS
    plan = BatchPlan(_recipe(MICRO).stages, SEED)
    step = STEPS - 1
    draws = [plan.draw(step, micro, source) for micro in range(MICRO)]
    parts = [source.load(draw) for draw in draws]
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    keys = Joined(SEED, step)
    object.__setattr__(keys, "places", tuple(draw.keys for draw in draws))
    objective.zero_grad()
    loss, _ = objective.loss(whole, keys)
    loss.backward()
    expected = {name: value.grad for name, value in objective.named_parameters() if value.grad is not None}
    assert seen[step].keys() == expected.keys()
    largest = max(float(value.abs().max()) for value in expected.values())
    assert largest > 0
    for name, value in expected.items():
        torch.testing.assert_close(seen[step][name], value, rtol=1e-4, atol=1e-5 * largest, msg=name)


def _key(purpose: str, step: int, micro: int, row: int = 0) -> torch.Generator:
    """The generator of a place, as the documentation of `randomness` words it."""
    text = f"{SEED}|{purpose}|{step}|{micro}|{row}"
    number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
    return torch.Generator().manual_seed(number)


@pytest.mark.parametrize("kind", DRAWS)
def test_every_row_micro_step_step_and_rank_draws_by_its_own_key(
    kind: str, objective_of: Callable[[str], Objective], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noise and sigma as the loss uses them, in a run of two processes, of which each is run here alone."""
    world, used = 2, []

    class Seen(FlowInputs):
        def __init__(self, latents: Tensor, known: Any, sigma: Tensor, noise: Tensor, *more: Any, **named: Any) -> None:
            used.append((latents, sigma, noise))
            super().__init__(latents, known, sigma, noise, *more, **named)

    for module in (flow, preference):
        monkeypatch.setattr(module, "FlowInputs", Seen)
    monkeypatch.setattr(Accelerator, "num_processes", world)
    noises, sigmas, clips = [], [], []
    own = ROWS // world
    for rank in range(world):
        monkeypatch.setattr(Accelerator, "process_index", rank)
        used.clear()
        objective: Any = objective_of(kind)
        _train(objective, Rows(kind), tmp_path, rank, world)
        assert len(used) == STEPS * MICRO
        for number, (latents, sigma, noise) in enumerate(used):
            place = divmod(number, MICRO)
            for row in range(own):
                expected = torch.randn(12, 4, generator=_key("noise", *place, rank * own + row))
                assert torch.equal(noise[row], expected), (rank, place, row)
            mu = resolution_shift_mu(12) if kind == "flow" else mu_of(objective.pipeline.scheduler, 12)
            drawn = sample_training_sigmas(ROWS, 12, _key("sigma", *place), mu=mu)
            assert torch.equal(sigma[:own], drawn[rank * own : (rank + 1) * own]), (rank, place)
            if kind == "preference":  # both clips of a pair
                assert torch.equal(noise[own:], noise[:own]) and torch.equal(sigma[own:], sigma[:own])
            noises += list(noise[:own])
            sigmas += sigma[:own].tolist()
            clips += list(latents[:own])
    count = STEPS * MICRO * ROWS
    for values in (noises, clips):
        assert len({tuple(value.flatten().tolist()) for value in values}) == count
    assert len(set(sigmas)) == count
