"""Where a student's segments begin: at its own states, and at those of a teacher that drafts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from vgen.diffusion.tokens import pack
from vgen.errors import RequestError
from vgen.pipelines import TextToVideoPipeline
from vgen.training.control import Control
from vgen.training.data.plan import Batch
from vgen.training.data.prompts import FilePrompts
from vgen.training.objectives.distill.config import DistillObjectiveConfig, TrajectoryConfig
from vgen.training.objectives.distill.distill import DistillObjective
from vgen.training.objectives.distill.teacher import Teacher
from vgen.training.objectives.distill.trajectories import TrajectoryCache
from vgen.training.randomness import Keys

STEPS = 2


class WithPictures(FilePrompts):
    """Prompts of a file, and a noisy picture as everyone's first frame."""

    def first_frames(self, indices: range, num_frames: int) -> torch.Tensor:
        return torch.rand(len(indices), 3, 32, 32, generator=torch.Generator().manual_seed(indices.start))


@pytest.fixture
def pipeline(tiny_pipeline_folder: Path) -> TextToVideoPipeline:
    found = TextToVideoPipeline.from_pretrained(tiny_pipeline_folder)
    found.scheduler = found.scheduler.from_config(found.scheduler.config, shift_terminal=None)
    found.set_progress_bar_config(disable=True)
    return found


def _distillation(
    pipeline: TextToVideoPipeline, folder: Path, own_states: float = 0.0, error_power: float = 0.0, **changes: Any
) -> tuple[DistillObjective, TrajectoryCache]:
    (folder / "prompts.txt").write_text("a red circle\na dog\nrain")
    told = TrajectoryConfig(**{"text": {9: 3}, "batch": 4, **changes})
    prompts, teacher = WithPictures(folder / "prompts.txt"), Teacher(pipeline, STEPS, told, 3.0)
    cache = TrajectoryCache(told, teacher, "hash", prompts, 0, folder)
    cache.fill(Control(folder), lambda text: None)
    cache.load()
    own = {"own_states": own_states, "error_power": error_power}
    config = DistillObjectiveConfig(kind="distill", teacher="x", trajectories=told, num_steps=STEPS, **own)
    return DistillObjective(config, teacher, cache, 0), cache


def _stepped(objective: DistillObjective, tokens: torch.Tensor, segment: int, batch: Batch) -> torch.Tensor:
    """One Euler step of the student from a segment's begin to its end."""
    sigma, after = [*objective.grid, 0.0][segment : segment + 2]
    return tokens + (after - sigma) * objective.velocity(tokens, torch.full((len(tokens),), sigma), batch)


@torch.no_grad()
def test_a_students_own_states_are_those_of_its_sampling(pipeline: TextToVideoPipeline, tmp_path: Path) -> None:
    objective, cache = _distillation(pipeline, tmp_path)
    batch = cache.rows("text", 9, [0, 1, 2])
    states = objective.reached(batch, torch.tensor([0, 1, 1]))
    torch.testing.assert_close(states[0], batch["states"][0, 0])
    assert not torch.allclose(states[1], batch["states"][1, 1], atol=1e-3)  # the teacher was elsewhere
    last = objective.reached(batch, torch.full((3,), STEPS - 1))
    torch.testing.assert_close(states[2], last[2], rtol=1e-4, atol=1e-5)
    ends = objective.sample(batch, 9, Control(tmp_path))
    torch.testing.assert_close(_stepped(objective, last, STEPS - 1, batch), ends, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_what_is_given_stays_in_a_students_own_states(pipeline: TextToVideoPipeline, tmp_path: Path) -> None:
    objective, cache = _distillation(pipeline, tmp_path, first={9: 2})
    batch = cache.rows("first", 9, [0, 1])
    given = batch["strength"][0] == 1
    states = objective.reached(batch, torch.full((2,), STEPS - 1))
    assert torch.equal(states[:, given], batch["states"][:, 0, given])
    assert (states[:, ~given] != batch["states"][:, 0, ~given]).any(dim=-1).all()


def test_a_students_own_states_lead_back_to_the_teachers_next_ones(
    pipeline: TextToVideoPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is that of one step from the student's state to where the teacher goes, and only where asked for."""
    objective, cache = _distillation(pipeline, tmp_path, own_states=1.0)
    batch, segment = cache.rows("text", 9, [0, 1, 2]), torch.tensor([1, 1, 0])
    begin = objective.reached(batch, segment)
    errors = objective.segment_errors(batch, segment, begin)
    for row, index in enumerate(segment.tolist()):
        alone = {name: value[row : row + 1] for name, value in batch.items()}
        sigma, after = [*objective.grid, 0.0][index : index + 2]
        missed = _stepped(objective, begin[row : row + 1], index, alone) - batch["states"][row : row + 1, index + 1]
        torch.testing.assert_close(errors[row], (missed / (sigma - after)).square().mean(), rtol=1e-3, atol=1e-6)

    asked: list[torch.Tensor | None] = []
    kept = objective.segment_errors
    monkeypatch.setattr(
        objective, "segment_errors", lambda batch, segment, begin=None: (asked.append(begin), kept(batch, segment))[1]
    )
    objective.loss(batch, Keys(0, 1))
    assert asked[-1] is not None
    never, _ = _distillation(pipeline, tmp_path)
    monkeypatch.setattr(never, "reached", lambda *_: pytest.fail("own states were not asked for"))
    never.loss(batch, Keys(0, 1))


def test_a_teacher_may_draft_and_its_first_frame_is_learned_too(pipeline: TextToVideoPipeline, tmp_path: Path) -> None:
    _, plain = _distillation(pipeline, tmp_path)
    _, drafted = _distillation(pipeline, tmp_path, draft_steps=5)
    assert plain.folder != drafted.folder
    batch, teacher = drafted.rows("text", 9, [0, 1, 2]), drafted.teacher
    states = batch["states"]
    assert torch.equal(states[:, 0], plain.rows("text", 9, [0, 1, 2])["states"][:, 0])  # from the same noise
    made = pipeline(
        ["a red circle", "a dog", "rain"],
        latents=states[:, 0],
        num_inference_steps=len(teacher.fine),
        draft_steps=5,
        guidance_scale=3.0,
        output_type="latent",
    ).frames
    torch.testing.assert_close(states[:, -1], pack(made, pipeline.patch_size), rtol=1e-4, atol=1e-4)
    first = teacher.layout("first", 9).strength > 0
    assert first.any() and not first.all() and not batch["strength"].any()
    for index, sigma in enumerate([*teacher.grid, 0.0]):
        line = sigma * states[:, 0] + (1 - sigma) * states[:, -1]
        torch.testing.assert_close(states[:, index, first], line[:, first], rtol=1e-4, atol=1e-4)


def test_a_draft_needs_a_schedule_through_the_students_sigmas(
    pipeline: TextToVideoPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Teacher._schedule
    monkeypatch.setattr(
        Teacher, "_schedule", lambda self, steps: kept(self, steps) if steps == STEPS else (1.0,) * steps
    )
    assert len(Teacher(pipeline, STEPS, TrajectoryConfig(text={9: 4})).fine) == 4 * STEPS
    with pytest.raises(RequestError, match="draft_steps=5 needs a teacher whose schedule"):
        Teacher(pipeline, STEPS, TrajectoryConfig(text={9: 4}, draft_steps=5))


def test_errors_that_are_divided_by_themselves_pull_alike(
    pipeline: TextToVideoPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for power, pulls in (
        (0.0, (1 / 3, 1 / 3, 1 / 3)),
        (0.5, (1 / 0.3, 1 / 3, 1 / 30)),
        (1.0, (1 / 0.03, 1 / 3, 1 / 300)),
    ):
        objective, cache = _distillation(pipeline, tmp_path, error_power=power)
        errors = torch.tensor([0.01, 1.0, 100.0], requires_grad=True)
        monkeypatch.setattr(objective, "segment_errors", lambda *_, errors=errors: errors * 1.0)
        loss, logs = objective.loss(cache.rows("text", 9, [0, 1, 2]), Keys(0, 1))
        loss.backward()
        torch.testing.assert_close(errors.grad, torch.tensor(pulls), rtol=0.1, atol=0)
        told = sum(float(value) for value in logs.values())
        assert told > 1.0, "the log tells the errors themselves"
