"""Few steps: the teacher's trajectories, the segment velocity, and a student that keeps to its sigmas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from vgen.errors import CheckpointError, RequestError
from vgen.pipelines import ImageToVideoPipeline, TextToVideoPipeline
from vgen.training.checkpoint.store import CheckpointStore
from vgen.training.config.data import SpritesConfig
from vgen.training.control import Control, StopRequested
from vgen.training.data.clips import SpriteClips
from vgen.training.data.prompts import FilePrompts, SpritePrompts
from vgen.training.data.sprites.keys import AnswerKey
from vgen.training.estimate.dry_run import dry_run
from vgen.training.judge.judge import Score
from vgen.training.objectives.distill import trajectories
from vgen.training.objectives.distill.config import DistillObjectiveConfig, TrajectoryConfig
from vgen.training.objectives.distill.distill import DistillObjective
from vgen.training.objectives.distill.teacher import Teacher
from vgen.training.objectives.distill.trajectories import TrajectoryCache
from vgen.training.randomness import Keys
from vgen.training.recipe import load_recipe
from vgen.training.run import run_recipe

PROMPTS = ("a red circle", "a blue square moves left", "rain", "a dog")


@pytest.fixture
def teacher_pipeline(tiny_pipeline_folder: Path) -> TextToVideoPipeline:
    pipeline = TextToVideoPipeline.from_pretrained(tiny_pipeline_folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> FilePrompts:
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("\n\n".join(PROMPTS))
    return FilePrompts(path)


def test_a_file_of_prompts_has_one_per_line(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_bytes("\ufeffa\u2028b\r\n\r\nc\u0085d\n".encode())
    assert FilePrompts(tmp_path / "prompts.txt").texts == ["a\u2028b", "c\u0085d"]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrajectoryCache, "shard_size", 4)


def _cache(pipeline: TextToVideoPipeline, prompts: FilePrompts, folder: Path, **changes: Any) -> TrajectoryCache:
    config = TrajectoryConfig(**{"text": {9: 4}, "batch": 4, **changes})
    teacher = Teacher(pipeline, 2, config, 3.0)
    return TrajectoryCache(config, teacher, "hash", prompts, 0, folder)


def _filled(pipeline: TextToVideoPipeline, prompts: FilePrompts, folder: Path, **changes: Any) -> TrajectoryCache:
    cache = _cache(pipeline, prompts, folder, **changes)
    cache.fill(Control(folder), lambda text: None)
    cache.load()
    return cache


def test_the_states_are_those_of_the_pipeline_itself(
    teacher_pipeline: TextToVideoPipeline, prompts: FilePrompts, tmp_path: Path
) -> None:
    """The last state is what the guided pipeline makes of the same noise with the teacher's steps."""
    cache = _filled(teacher_pipeline, prompts, tmp_path)
    batch = cache.rows("text", 9, [0, 1])
    teacher = cache.teacher
    assert len(teacher.grid) == 2 and len(teacher.fine) == 8
    assert batch["states"].shape[:2] == (2, 3)
    made = teacher_pipeline(
        list(PROMPTS[:2]), latents=batch["states"][:, 0], sigmas=teacher.fine, guidance_scale=3.0, output_type="latent"
    ).frames
    ends = batch["states"][:, -1].unflatten(1, made.shape[2:]).movedim(-1, 1)
    torch.testing.assert_close(ends, made, rtol=1e-4, atol=1e-4)


def test_stand_ins_for_a_dry_run_have_the_shapes_of_trajectories(
    teacher_pipeline: TextToVideoPipeline, prompts: FilePrompts, tmp_path: Path
) -> None:
    blank, real = _cache(teacher_pipeline, prompts, tmp_path), _filled(teacher_pipeline, prompts, tmp_path)
    blank.load_blank()
    first, second = (cache.rows("text", 9, [0, 1, 2]) for cache in (blank, real))
    assert first.keys() == second.keys()
    for name in first:
        assert first[name].dtype == second[name].dtype
        if name not in ("prompt_embeds", "attention_mask"):  # real texts are cut to the longest of the batch
            assert first[name].shape == second[name].shape
    assert first["prompt_embeds"].shape == (3, 24, second["prompt_embeds"].shape[-1])


def test_the_grid_is_the_schedule_that_the_pipeline_would_take(teacher_pipeline: TextToVideoPipeline) -> None:
    teacher = Teacher(teacher_pipeline, 2, TrajectoryConfig(text={9: 4}), 3.0)
    teacher_pipeline("a", num_inference_steps=2, output_type="latent")
    assert teacher.grid == pytest.approx(teacher_pipeline.scheduler.sigmas[:-1].tolist())
    assert teacher.fine[::4] == pytest.approx(teacher.grid)
    assert all(a > b for a, b in zip(teacher.fine, teacher.fine[1:], strict=False))


def test_a_first_frame_stays_where_it_is_and_is_not_learned(
    teacher_pipeline: TextToVideoPipeline, tmp_path: Path
) -> None:
    class WithPictures(FilePrompts):
        def first_frames(self, indices: range, num_frames: int) -> torch.Tensor:
            source = torch.Generator().manual_seed(indices.start)
            return torch.rand(len(indices), 3, 32, 32, generator=source)

    (tmp_path / "prompts.txt").write_text("a\nb")
    cache = _filled(teacher_pipeline, WithPictures(tmp_path / "prompts.txt"), tmp_path, first={9: 4})
    batch = cache.rows("first", 9, [0, 1])
    given = batch["strength"][0] == 1
    assert given.any() and not given.all()
    assert torch.equal(batch["states"][:, 0, given], batch["states"][:, -1, given])
    assert not torch.equal(batch["states"][0, 0, given], batch["states"][1, 0, given])
    assert (batch["states"][:, 0, ~given] != batch["states"][:, -1, ~given]).any()
    objective = DistillObjective(_config(), cache.teacher, cache, 0)
    segment = torch.tensor([0, 1])
    before = objective.segment_errors(batch, segment)
    changed = batch["states"].clone()
    changed[:, 1, given] += 5.0  # the end of segment 0 where it is given: no target
    torch.testing.assert_close(objective.segment_errors({**batch, "states": changed}, segment)[0], before[0])


def test_shards_are_kept_and_a_stop_is_heard(
    teacher_pipeline: TextToVideoPipeline, prompts: FilePrompts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = _filled(teacher_pipeline, prompts, tmp_path)
    (shard,) = (cache.folder / "text-9").iterdir()
    written = shard.stat().st_mtime_ns
    more = _cache(teacher_pipeline, prompts, tmp_path, text={9: 8})
    assert more.folder == cache.folder and more.fingerprint != cache.fingerprint
    (tmp_path / "stop").touch()
    with pytest.raises(StopRequested):
        more.fill(Control(tmp_path), lambda text: None)
    assert [path.name for path in (cache.folder / "text-9").iterdir()] == [shard.name]
    (tmp_path / "stop").unlink()
    more.fill(Control(tmp_path), lambda text: None)
    assert shard.stat().st_mtime_ns == written
    assert len(list((cache.folder / "text-9").iterdir())) == 2
    assert _cache(teacher_pipeline, prompts, tmp_path, substeps=2).folder != cache.folder
    with pytest.raises(CheckpointError, match="num_frames=5"):
        more.size(5)


def _config(**changes: Any) -> DistillObjectiveConfig:
    told = {"kind": "distill", "teacher": "x", "trajectories": {"text": {9: 4}}, "num_steps": 2, **changes}
    return DistillObjectiveConfig(**told)


def test_the_loss_is_zero_for_the_mean_velocity_of_a_segment(
    teacher_pipeline: TextToVideoPipeline, prompts: FilePrompts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = _filled(teacher_pipeline, prompts, tmp_path)
    objective = DistillObjective(_config(), cache.teacher, cache, 0)
    batch = cache.rows("text", 9, [0, 1, 2])
    first, second = cache.teacher.grid
    states = batch["states"]
    wanted = torch.stack(
        [(states[:, 0] - states[:, 1]) / (first - second), (states[:, 1] - states[:, 2]) / second], dim=1
    )
    assert float(objective.segment_errors(batch, torch.tensor([0, 1, 0])).detach().min()) > 1e-4
    asked: list[torch.Tensor] = []

    def exact(tokens: torch.Tensor, sigma: torch.Tensor, batch: Any) -> torch.Tensor:
        asked.append(sigma)
        return torch.stack([wanted[row, int(value < first)] for row, value in enumerate(sigma)])

    monkeypatch.setattr(objective, "velocity", exact)
    errors = objective.segment_errors(batch, torch.tensor([0, 1, 0]))
    torch.testing.assert_close(errors, torch.zeros(3), atol=1e-8, rtol=0)
    torch.testing.assert_close(asked[0], torch.tensor([first, second, first]))
    loss, logs = objective.loss(batch, Keys(0, 3))
    assert float(loss) < 1e-8 and set(logs) == {"loss/segment_0", "loss/segment_1"}


def _recipe(folder: Path, teacher: Path, **objective: Any) -> Path:
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    told = {
        "name": "few",
        "num_threads": 1,
        "device": "cpu",
        "export_dtype": "float32",
        "objective": {
            "kind": "distill",
            "teacher": str(teacher),
            "num_steps": 2,
            "guidance_scale": 4.0,
            "prompts": str(folder / "prompts.txt"),
            "trajectories": {"text": {9: 16}, "substeps": 8, "batch": 16},
            "validation_clips": 8,
            "sample_clips": 1,
            **objective,
        },
        "stages": [{"steps": 60, "frames": {9: 1.0}, "batch": {9: 8}}],
        "optimizer": {"lr": 3e-3, "weight_decay": 0.0},
        "schedule": {"warmup_steps": 5},
        "ema": {"limit": 0.9},
        "every": {"log": 1, "checkpoint": 20, "validate": 60},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(told))
    return path


def _log(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def student_run(tiny_pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("student")
    return run_recipe(_recipe(folder, tiny_pipeline_folder), [f"output_dir={folder / 'run'}"])


def test_a_student_comes_closer_to_its_teacher_than_the_teacher_in_as_few_steps(
    student_run: Path, teacher_pipeline: TextToVideoPipeline, prompts: FilePrompts
) -> None:
    losses = [entry["loss"] for entry in _log(student_run) if "loss" in entry]
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:3])
    student = TextToVideoPipeline.from_pretrained(student_run / "export")
    student.set_progress_bar_config(disable=True)
    told = {"output_type": "latent", "prompt": list(PROMPTS)}
    told["latents"] = torch.randn(4, 4, 3, 4, 4, generator=torch.Generator().manual_seed(5))
    true = teacher_pipeline(num_inference_steps=32, guidance_scale=4.0, **told).frames
    own = teacher_pipeline(num_inference_steps=2, guidance_scale=4.0, **told).frames
    made = student(**told).frames
    assert student.num_timesteps == 2
    assert not student.do_classifier_free_guidance
    assert float((made - true).square().mean()) < 0.7 * float((own - true).square().mean())
    assert (student_run / "samples" / "step-00000060.png").is_file()


def test_the_sigmas_are_stored_with_the_weights_and_enforced(student_run: Path) -> None:
    index = json.loads((student_run / "export" / "model_index.json").read_text())
    assert index["defaults"]["distilled"] is True and len(index["defaults"]["sigmas"]) == 2
    student = TextToVideoPipeline.from_pretrained(student_run / "export")
    for settings, message in (
        ({"num_inference_steps": 3}, "num_inference_steps=3: .*exactly 2 steps.*use num_inference_steps=2"),
        ({"guidance_scale": 4.0}, "guidance_scale=4.0: .*use guidance_scale=1"),
        ({"sigmas": [1.0, 0.5]}, "sigmas=1, 0.5: .*exactly"),
        ({"sigmas": index["defaults"]["sigmas"][:1]}, "sigmas=1: .*leave sigmas out"),
        ({"timesteps": [1000, 500]}, "exactly"),
        ({"stg_scale": 1.0, "stg_blocks": [0]}, "stg_scale=1.0: .*leave it out"),
        ({"stochastic_sampling": True}, "stochastic_sampling=True: "),
    ):
        with pytest.raises(RequestError, match=message):
            student("a", **settings)
    allowed = student.fill_settings({"prompt": "a", "num_inference_steps": 2, "guidance_scale": 1.0})
    assert list(allowed.sigmas or ()) == pytest.approx(index["defaults"]["sigmas"])
    other = ImageToVideoPipeline(**student.components)
    with pytest.raises(RequestError, match="exactly 2 steps"):
        other(np.zeros((32, 32, 3), dtype=np.uint8), "a", num_inference_steps=5)


def test_resuming_a_distillation_equals_not_stopping(
    student_run: Path, tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    path = _recipe(tmp_path, tiny_pipeline_folder)
    shorter = [f"output_dir={run}", "schedule.name=constant", "every.validate=0"]
    whole = tmp_path / "whole"
    stages = "stages=[{steps: 4, frames: {9: 1.0}, batch: {9: 8}}]"
    again = "stages=[{steps: 2, frames: {9: 1.0}, batch: {9: 8}}]"
    run_recipe(path, [f"output_dir={whole}", *shorter[1:], stages])
    run_recipe(path, [*shorter, again])
    run_recipe(path, [*shorter, stages])
    first, second = (CheckpointStore(folder / "checkpoints") for folder in (whole, run))
    one, two = first.load(first.newest() or whole), second.load(second.newest() or run)
    assert one.step == two.step == 4
    assert all(torch.equal(one.model[name], two.model[name]) for name in one.model)
    assert all(torch.equal(one.ema[name], two.ema[name]) for name in one.ema)


def test_a_student_is_no_teacher(student_run: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="is distilled: it knows no other sigmas"):
        run_recipe(_recipe(tmp_path, student_run / "export"), [f"output_dir={tmp_path / 'run'}"])


def test_adapters_alone_learn_and_carry_their_sigmas(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    path = _recipe(tmp_path, tiny_pipeline_folder, train="lora", rank=4)
    stages = "stages=[{steps: 20, frames: {9: 1.0}, batch: {9: 8}}]"
    run = run_recipe(path, [f"output_dir={tmp_path / 'run'}", "every.validate=0", stages])
    losses = [entry["loss"] for entry in _log(run)]
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    merged = TextToVideoPipeline.from_pretrained(run / "export")
    teacher = TextToVideoPipeline.from_pretrained(tiny_pipeline_folder)
    for pipeline in (merged, teacher):
        pipeline.set_progress_bar_config(disable=True)
    told: dict[str, Any] = {"prompt": "a dog", "output_type": "latent"}
    plain = teacher(generator=torch.Generator().manual_seed(0), **told).frames
    teacher.load_lora_weights(run / "export" / "lora", adapter_name="few")
    with pytest.raises(RequestError, match="exactly 2 steps"):
        teacher(num_inference_steps=3, **told)
    made = teacher(generator=torch.Generator().manual_seed(0), **told).frames
    assert teacher.num_timesteps == 2 and not teacher.do_classifier_free_guidance
    again = merged(generator=torch.Generator().manual_seed(0), **told).frames
    torch.testing.assert_close(made, again, rtol=1e-3, atol=1e-3)
    saved = teacher.save_lora(tmp_path / "copy")
    teacher.delete_adapters("few")
    assert torch.equal(teacher(generator=torch.Generator().manual_seed(0), **told).frames, plain)
    teacher.load_lora_weights(saved)
    assert teacher.lora_defaults()["num_inference_steps"] == 2


def test_public_weights_can_be_distilled(ltx_folders: dict[str, Path], tmp_path: Path) -> None:
    size = {"height": 64, "width": 64, "num_frames": 9, "frame_rate": 8.0}
    pipeline = TextToVideoPipeline.from_pretrained(ltx_folders["0.9.5"], defaults=size)
    pipeline.save_pretrained(tmp_path / "teacher")
    path = _recipe(tmp_path, tmp_path / "teacher", trajectories={"text": {9: 4}, "batch": 4})
    stages = "stages=[{steps: 3, frames: {9: 1.0}, batch: {9: 4}}]"
    run = run_recipe(path, [f"output_dir={tmp_path / 'run'}", "every.validate=3", stages])
    student = TextToVideoPipeline.from_pretrained(run / "export")
    assert student.config.convention == pipeline.config.convention
    assert len(student("a", output_type="np").frames[0]) == 9
    assert student.num_timesteps == 2


def test_recipes_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="does not go with a prompts file"):
        _config(trajectories={"text": {9: 4}, "first": {9: 4}}, prompts="prompts.txt")
    with pytest.raises(ValueError, match="which text has not"):
        TrajectoryConfig(text={9: 4}, first={5: 4})
    with pytest.raises(ValueError, match="leaves nothing to make"):
        TrajectoryConfig(text={1: 4}, first={1: 4})
    with pytest.raises(RequestError, match="cannot be read"):
        FilePrompts(Path("nothing.txt"))


def test_judged_trajectories_are_the_right_ones_of_prompts_that_say_all(
    teacher_pipeline: TextToVideoPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = SpriteClips(SpritesConfig(tier=1, height=32, width=32))
    world = SpritePrompts(clips, complete=True)
    asked: list[AnswerKey] = []

    def every_other(frames: np.ndarray, key: AnswerKey) -> Score:
        assert frames.shape == (9, 32, 32, 3) and frames.dtype == np.uint8
        asked.append(key)
        return Score(True, True, True, len(asked) % 2 == 1, 0.0, 0.0)

    monkeypatch.setattr(trajectories, "score", every_other)
    config = TrajectoryConfig(text={9: 4}, batch=4, judged=True)
    cache = TrajectoryCache(config, Teacher(teacher_pipeline, 2, config, 3.0), "hash", world, 0, tmp_path)
    cache.fill(Control(tmp_path), lambda text: None)
    assert asked == [world.key(place, 9) for place in range(4)]
    cache.load()
    rows = cache.rows("text", 9, [0, 1, 2])
    assert "right" not in rows and torch.equal(rows["states"][0], rows["states"][2])
    (shard,) = (cache.folder / "text-9").iterdir()
    whole = load_file(shard)
    assert whole["right"].tolist() == [True, False, True, False]
    assert torch.equal(rows["states"][:2], whole["states"][[0, 2]])
    assert (
        TrajectoryCache(config.model_copy(update={"judged": False}), cache.teacher, "hash", world, 0, tmp_path).folder
        != cache.folder
    )
    monkeypatch.setattr(trajectories, "score", lambda *_: Score(True, True, True, False, 0.0, 0.0))
    none = TrajectoryCache(config, cache.teacher, "other", world, 0, tmp_path)
    none.fill(Control(tmp_path), lambda text: None)
    with pytest.raises(RequestError, match="none of 4 clips of 9 frames"):
        none.load()
    with pytest.raises(ValueError, match="no prompts file's"):
        _config(prompts=tmp_path / "prompts.txt", trajectories={"text": {9: 4}, "judged": True})


def test_a_dry_run_integrates_a_few(
    tiny_pipeline_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    make = TrajectoryCache.make
    monkeypatch.setattr(
        TrajectoryCache, "make", lambda self, *asked: (made.append(len(asked[1])), make(self, *asked))[1]
    )
    counted = dry_run(load_recipe(_recipe(tmp_path, tiny_pipeline_folder), []))
    assert counted.training > 0 and counted.caching > 0 and not made
    estimate = dry_run(load_recipe(_recipe(tmp_path, tiny_pipeline_folder), []), measure=True)
    assert made == [4] and estimate.caching > 0 and estimate.training > 0


def test_prompts_say_all_in_every_tier_or_in_half_of_the_clips() -> None:
    """A judge can only ask for what was said; and no tier may be the one that leaves things out."""
    clips = SpriteClips(SpritesConfig(tier=[1, 2]), "train")
    half, complete = SpritePrompts(clips), SpritePrompts(clips, complete=True)
    assert half.fingerprint != complete.fingerprint

    def names_all(prompts: SpritePrompts, index: int) -> bool:
        item, text = prompts.key(index, 17).objects[0], prompts.text(index, 17)
        return item.colour in text and item.shape in text

    for tier in (0, 1):
        places = range(tier, 300, 2)
        assert all(names_all(complete, index) for index in places)
        assert 0.8 < np.mean([names_all(half, index) for index in places]) < 1.0
