"""Preferences: the pairs, the loss of Flow-DPO, and a model that moves towards what is chosen."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from vgen.errors import CheckpointError, MediaError, RequestError
from vgen.io.media.video import write_video
from vgen.pipelines import TextToVideoPipeline
from vgen.training.checkpoint.store import CheckpointStore
from vgen.training.config.data import SpritesConfig
from vgen.training.control import Control, StopRequested
from vgen.training.data.clips import SpriteClips
from vgen.training.data.prompts import SpritePrompts
from vgen.training.objectives.preference.config import PairsConfig, PreferenceObjectiveConfig
from vgen.training.objectives.preference.pair_sources import ClipMaker, JudgedPairs, PairFile, read_pair_file
from vgen.training.objectives.preference.pairs import PairCache
from vgen.training.objectives.preference.preference import PreferenceObjective
from vgen.training.randomness import Keys, generator
from vgen.training.run import run_recipe

Answers = dict[tuple[int, int], bool]


@pytest.fixture
def pipeline(tiny_pipeline_folder: Path) -> TextToVideoPipeline:
    pipeline = TextToVideoPipeline.from_pretrained(tiny_pipeline_folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PairCache, "shard_size", 2)


class Judged(JudgedPairs):
    """Clips are right or wrong as told, by place and number."""

    def __init__(self, answers: Answers, *args: Any) -> None:
        super().__init__(*args)
        self.answers = answers
        self.asked: dict[int, int] = {}

    def is_right(self, place: int, frames: np.ndarray) -> bool:
        assert frames.dtype == np.uint8 and frames.shape == (9, 32, 32, 3)
        number = self.asked.get(place, 0)
        self.asked[place] = number + 1
        return self.answers[place, number]


def _judged(pipeline: TextToVideoPipeline, answers: Answers, count: int, **changes: Any) -> Judged:
    config = PairsConfig(num_frames=9, batch=3, **changes)
    clips = SpriteClips(SpritesConfig(tier=1, height=32, width=32))
    return Judged(answers, config, SpritePrompts(clips, complete=True), ClipMaker(pipeline, config), 0, count)


def _cache(source: Judged, folder: Path) -> PairCache:
    return PairCache(source.config, source, source.maker, "hash", folder)


def test_a_right_clip_is_paired_with_a_wrong_one_of_its_prompt(pipeline: TextToVideoPipeline, tmp_path: Path) -> None:
    right = {(0, 0), (0, 2), (1, 3), (3, 0), (3, 1), (3, 2), (3, 3)}
    answers = {(place, clip): (place, clip) in right for place in range(4) for clip in range(4)}
    source = _judged(pipeline, answers, 4)
    texts, chosen, rejected = source.pairs(range(4), Control(tmp_path))
    assert texts == [source.prompt(0)] * 2 + [source.prompt(1)] * 3
    assert torch.equal(chosen[2], chosen[3]) and torch.equal(chosen[3], chosen[4])
    assert not torch.equal(rejected[2], rejected[3])
    generators = [generator(0, "pair", 0, clip) for clip in range(4)]
    own, frames = source.maker.make([source.prompt(0)] * 4, generators, Control(tmp_path))
    torch.testing.assert_close(torch.stack(chosen[:2]), own[[0, 2]], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.stack(rejected[:2]), own[[1, 3]], rtol=1e-4, atol=1e-4)
    shown = pipeline(source.prompt(0), generator=generator(0, "pair", 0, 0), output_type="uint8").frames
    assert np.abs(np.asarray(shown)[0].astype(int) - frames[0].astype(int)).max() <= 1


def test_the_rendered_clip_stands_in_where_none_is_right(pipeline: TextToVideoPipeline, tmp_path: Path) -> None:
    answers = {(place, clip): place == 1 for place in range(2) for clip in range(2)}
    source = _judged(pipeline, answers, 2, clips=2, rendered=True)
    texts, (chosen, again), rejected = source.pairs(range(2), Control(tmp_path))
    assert texts == [source.prompt(0)] * 2 and len(rejected) == 2 and torch.equal(chosen, again)
    frames = source.prompts.clips.stack([0], 9)["frames"]
    torch.testing.assert_close(chosen, source.maker.encode(frames)[0])


def test_pairs_are_kept_and_no_pair_is_an_error(pipeline: TextToVideoPipeline, tmp_path: Path) -> None:
    answers = {(place, clip): clip == 0 and place != 1 for place in range(4) for clip in range(2)}
    cache = _cache(_judged(pipeline, answers, 3, clips=2), tmp_path)
    cache.fill(Control(tmp_path), lambda text: None)
    cache.load()
    assert len(cache) == 2 and cache.size(9) == 2
    with pytest.raises(CheckpointError, match=r"num_frames=17 is trained on, and objective\.pairs\.num_frames has 9"):
        cache.size(17)
    batch = cache.rows([0, 1, 2])
    assert torch.equal(batch["chosen"][0], batch["chosen"][2]) and batch["indices"].tolist() == [0, 1, 0]
    assert batch["prompt_embeds"].shape[1] == batch["attention_mask"].shape[1] <= 24
    before = {path.name: path.stat().st_mtime_ns for path in cache.folder.iterdir()}
    more = _cache(_judged(pipeline, answers, 4, clips=2), tmp_path)
    assert more.folder == cache.folder and more.fingerprint != cache.fingerprint
    (tmp_path / "stop").touch()
    with pytest.raises(StopRequested):
        more.fill(Control(tmp_path), lambda text: None)
    (tmp_path / "stop").unlink()
    more.fill(Control(tmp_path), lambda text: None)
    more.load()
    after = {path.name: path.stat().st_mtime_ns for path in cache.folder.iterdir()}
    assert len(more) == 3 and len(after) == 3 and before.items() <= after.items()
    none = _cache(_judged(pipeline, dict.fromkeys(answers, False), 4, clips=2), tmp_path / "other")
    none.fill(Control(tmp_path), lambda text: None)
    with pytest.raises(RequestError, match="none of 4 prompts gave a pair"):
        none.load()


def _objective(pipeline: TextToVideoPipeline, folder: Path, **changes: Any) -> tuple[PreferenceObjective, PairCache]:
    answers = {(place, clip): clip == 0 for place in range(4) for clip in range(2)}
    cache = _cache(_judged(pipeline, answers, 4, clips=2), folder)
    cache.fill(Control(folder), lambda text: None)
    cache.load()
    told: dict[str, Any] = {"kind": "preference", "model": "x", "pairs": {"num_frames": 9}, **changes}
    return PreferenceObjective(PreferenceObjectiveConfig(**told), cache.maker, cache, 0), cache


@pytest.mark.parametrize("train", ["full", "lora"])
def test_at_the_reference_the_loss_is_ln_2_and_a_step_takes_the_chosen_s_side(
    pipeline: TextToVideoPipeline, tmp_path: Path, train: str
) -> None:
    objective, cache = _objective(pipeline, tmp_path, train=train, lora={"rank": 4})
    batch = cache.rows([0, 1, 2, 3])
    loss, logs = objective.loss(batch, Keys(0, 0))
    assert float(loss.detach()) == pytest.approx(math.log(2), abs=1e-4)
    assert float(logs["margin"]) == pytest.approx(0.0, abs=1e-6)
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(4):
        optimizer.zero_grad()
        objective.loss(batch, Keys(0, 0))[0].backward()
        optimizer.step()
    moved, logs = objective.loss(batch, Keys(0, 0))
    assert float(moved.detach()) < math.log(2) - 0.05
    assert float(logs["accuracy"]) == 1.0 and float(logs["margin"]) > 0
    assert set(objective.state_dict()) == {n for n, p in objective.named_parameters() if p.requires_grad}


def test_the_loss_is_that_of_the_paper(
    pipeline: TextToVideoPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective, cache = _objective(pipeline, tmp_path, beta=40.0, flow_weight=0.5)
    answers = iter((torch.tensor([0.5, 0.4, 0.30, 0.60]), torch.tensor([0.6, 0.4, 0.35, 0.50])))
    monkeypatch.setattr(objective, "_errors", lambda *_: next(answers))
    loss, logs = objective.loss(cache.rows([0, 1]), Keys(0, 0))
    first = 1 / (1 + math.exp(-20 * -((0.5 - 0.6) - (0.30 - 0.35))))
    second = 1 / (1 + math.exp(-20 * -((0.4 - 0.4) - (0.60 - 0.50))))
    assert float(loss) == pytest.approx(-(math.log(first) + math.log(second)) / 2 + 0.5 * 0.45, rel=1e-5)
    assert float(logs["accuracy"]) == 1.0 and float(logs["margin"]) == pytest.approx(0.075, rel=1e-4)


def test_both_clips_of_a_pair_share_sigma_and_noise(
    pipeline: TextToVideoPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective, cache = _objective(pipeline, tmp_path)
    seen: list[Any] = []

    def errors(transformer: Any, inputs: Any, batch: Any) -> torch.Tensor:
        seen.append(inputs)
        return torch.zeros(4)

    monkeypatch.setattr(objective, "_errors", errors)
    objective.loss(cache.rows([0, 1]), Keys(3, 5))
    sigma = seen[0].timestep / 1000
    torch.testing.assert_close(sigma[:2], sigma[2:])
    # The target is noise - clean, the state clean + sigma * target: noise follows.
    noise = seen[0].hidden_states + (1 - sigma)[:, None, None] * seen[0].target
    torch.testing.assert_close(noise[:2], noise[2:], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(seen[0].hidden_states[:2], seen[0].hidden_states[2:])


def _write_pairs(folder: Path, count: int = 6, frames: int = 9) -> Path:
    """Bright clips are preferred to dark ones."""
    lines = []
    for number in range(count):
        for name, level in (("bright", 200 + 5 * number), ("dark", 10 + 5 * number)):
            clip = np.full((frames, 48, 48, 3), level, dtype=np.uint8)
            write_video(folder / f"{name}{number}.mp4", clip, 8.0)
        lines.append({"prompt": "a room", "chosen": f"bright{number}.mp4", "rejected": f"dark{number}.mp4"})
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    return path


def _recipe(folder: Path, model: Path, **objective: Any) -> Path:
    told = {
        "name": "preferred",
        "num_threads": 1,
        "device": "cpu",
        "export_dtype": "float32",
        "objective": {
            "kind": "preference",
            "model": str(model),
            "pairs": {"num_frames": 9, "file": str(folder / "pairs.jsonl")},
            "validation_prompts": 2,
            **objective,
        },
        "stages": [{"steps": 12, "frames": {9: 1.0}, "batch": {9: 4}}],
        "optimizer": {"lr": 1e-3, "weight_decay": 0.0},
        "schedule": {"warmup_steps": 0},
        "ema": {"limit": 0.5},
        "every": {"log": 1, "checkpoint": 6, "validate": 12},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(told))
    return path


def _log(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def _towards(pipeline: TextToVideoPipeline, way: torch.Tensor) -> float:
    """How far the finished latents of four clips lie along a way."""
    pipeline.set_progress_bar_config(disable=True)
    sources = [torch.Generator().manual_seed(seed) for seed in range(4)]
    return float((pipeline(["a room"] * 4, generator=sources, output_type="latent").frames * way).sum() / 4)


def _way(folder: Path, pipeline: TextToVideoPipeline) -> torch.Tensor:
    """From what is rejected to what is chosen, of length 1."""
    source = PairFile(read_pair_file(folder / "pairs.jsonl"), ClipMaker(pipeline, PairsConfig(num_frames=9)))
    _, chosen, rejected = source.pairs(range(source.count), Control(folder))
    way = torch.stack(chosen).mean(dim=0) - torch.stack(rejected).mean(dim=0)
    return way / way.norm()


def test_a_file_of_pairs_moves_the_model_towards_what_is_chosen(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    _write_pairs(tmp_path)
    run = run_recipe(_recipe(tmp_path, tiny_pipeline_folder, beta=100.0), [f"output_dir={tmp_path / 'run'}"])
    entries = _log(run)
    losses = [entry["loss/preference"] for entry in entries if "loss/preference" in entry]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-4) and np.mean(losses[-3:]) < 0.6
    measured = next(entry for entry in reversed(entries) if "validation/accuracy" in entry)
    assert measured["validation/accuracy"] == 1.0 and measured["validation/loss"] < math.log(2)
    tuned = TextToVideoPipeline.from_pretrained(run / "export")
    before = TextToVideoPipeline.from_pretrained(tiny_pipeline_folder)
    way = _way(tmp_path, before)
    assert _towards(tuned, way) > _towards(before, way) + 0.5


def test_a_lora_of_preferences_loads_where_others_do(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    _write_pairs(tmp_path)
    path = _recipe(tmp_path, tiny_pipeline_folder, beta=100.0, train="lora", lora={"rank": 4})
    run = run_recipe(path, [f"output_dir={tmp_path / 'run'}", "optimizer.lr=5e-3"])
    base = TextToVideoPipeline.from_pretrained(tiny_pipeline_folder)
    way = _way(tmp_path, base)
    before = _towards(base, way)
    base.load_lora_weights(run / "export")
    assert _towards(base, way) > before + 0.5


def test_a_resumed_run_equals_one_that_did_not_stop(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    _write_pairs(tmp_path)
    path = _recipe(tmp_path, tiny_pipeline_folder)
    told = ["schedule.name=constant", "every.validate=0", "every.checkpoint=2"]
    four, two = (f"stages=[{{steps: {steps}, frames: {{9: 1.0}}, batch: {{9: 4}}}}]" for steps in (4, 2))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_recipe(path, [f"output_dir={whole}", *told, four])
    run_recipe(path, [f"output_dir={parts}", *told, two])
    run_recipe(path, [f"output_dir={parts}", *told, four])
    first, second = (CheckpointStore(folder / "checkpoints") for folder in (whole, parts))
    one, other = first.load(first.newest() or whole), second.load(second.newest() or parts)
    assert one.step == other.step == 4
    assert all(torch.equal(one.model[name], other.model[name]) for name in one.model)


def test_a_dry_run_makes_one_pair(tiny_pipeline_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vgen.training.estimate.dry_run import dry_run
    from vgen.training.recipe import load_recipe

    _write_pairs(tmp_path)
    made: list[Path] = []
    encode = PairFile._encode
    monkeypatch.setattr(PairFile, "_encode", lambda self, path: (made.append(path), encode(self, path))[1])
    counted = dry_run(load_recipe(_recipe(tmp_path, tiny_pipeline_folder), []))
    assert counted.training > 0 and counted.caching > 0 and not made
    estimate = dry_run(load_recipe(_recipe(tmp_path, tiny_pipeline_folder), []), measure=True)
    assert estimate.training > 0 and estimate.caching > 0
    assert len(made) == 2  # one pair, to tell how long the others will take


def test_public_weights_can_be_tuned(ltx_folders: dict[str, Path], tmp_path: Path) -> None:
    _write_pairs(tmp_path, count=3)
    path = _recipe(tmp_path, ltx_folders["0.9.5"], validation_prompts=1, flow_weight=0.1, train="lora")
    few = "stages=[{steps: 2, frames: {9: 1.0}, batch: {9: 1}}]"
    folder = _with_small_defaults(ltx_folders["0.9.5"], tmp_path / "model")
    run = run_recipe(path, [f"output_dir={tmp_path / 'run'}", f"objective.model={folder}", "every.validate=0", few])
    losses = [entry["loss/preference"] for entry in _log(run) if "loss/preference" in entry]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-4)
    assert list((run / "export").glob("*.safetensors"))


def _with_small_defaults(source: Path, target: Path) -> Path:
    pipeline = TextToVideoPipeline.from_pretrained(source)
    defaults = {"height": 64, "width": 64, "num_frames": 9, "frame_rate": 8.0, "num_inference_steps": 2}
    parts = {**pipeline.components, "defaults": {**pipeline.config.defaults, **defaults}}
    TextToVideoPipeline(**parts).save_pretrained(target)
    return target


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no pair"),
        ("{", "line 1: "),
        ('{"prompt": "a"}', "line 1: it must be an object with the texts prompt, chosen, rejected"),
        ('{"prompt": "a", "chosen": "no.mp4", "rejected": "no.mp4"}', "line 1: chosen='no.mp4' is not there"),
    ],
)
def test_a_wrong_file_of_pairs_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(text)
    with pytest.raises(RequestError, match=message):
        read_pair_file(path)
    with pytest.raises(RequestError, match="cannot be read"):
        read_pair_file(tmp_path / "other.jsonl")


def test_pairs_are_known_by_the_content_of_their_clips(pipeline: TextToVideoPipeline, tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    path = _write_pairs(tmp_path / "first", count=2, frames=5)

    def fingerprint(path: Path) -> str:
        return PairFile(read_pair_file(path), ClipMaker(pipeline, PairsConfig(num_frames=9))).fingerprint

    before = fingerprint(path)
    (tmp_path / "first").rename(tmp_path / "moved")
    path = tmp_path / "moved" / path.name
    assert fingerprint(path) == before
    clip = Path(read_pair_file(path)[0]["chosen"])
    content, status = bytearray(clip.read_bytes()), clip.stat()
    content[-1] ^= 1
    clip.write_bytes(content)
    os.utime(clip, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert fingerprint(path) != before, "of the same size and time, and another clip"


def test_a_prompt_with_a_separator_of_lines_is_one_pair(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    line = {"prompt": "a\u2028b\u0085c", "chosen": "a.mp4", "rejected": "a.mp4"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(line, ensure_ascii=False) + "\n", encoding="utf-8")
    assert [pair["prompt"] for pair in read_pair_file(tmp_path / "pairs.jsonl")] == [line["prompt"]]


def test_clips_that_are_too_short_and_too_many_held_out_are_refused(
    pipeline: TextToVideoPipeline, tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    path = _write_pairs(tmp_path, count=2, frames=5)
    source = PairFile(read_pair_file(path), ClipMaker(pipeline, PairsConfig(num_frames=9)))
    with pytest.raises(MediaError, match=r"has 5 frames, and objective\.pairs\.num_frames is 9"):
        source.pairs(range(2), Control(tmp_path))
    with pytest.raises(RequestError, match=r"validation_prompts=2 leaves none of the 2 pairs .* use at most 1"):
        run_recipe(_recipe(tmp_path, tiny_pipeline_folder), [f"output_dir={tmp_path / 'run'}"])
    with pytest.raises(ValueError, match="does not go with a file of pairs"):
        PairsConfig(file=path, rendered=True)


def test_what_cannot_work_is_refused_before_anything_is_made(
    tiny_pipeline_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lengths with the recipe, a file of pairs before the model is loaded, the size before clips are made."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a clip was made")

    monkeypatch.setattr(ClipMaker, "make", refuse)
    run = f"output_dir={tmp_path / 'run'}"
    path = _recipe(tmp_path, tmp_path / "no model")
    with pytest.raises(RequestError, match="cannot be read"):
        run_recipe(path, [run])
    _write_pairs(tmp_path, count=1)
    with pytest.raises(RequestError, match=r"num_frames=17.* makes clips of 9"):
        run_recipe(path, [run, "stages=[{steps: 1, frames: {17: 1.0}, batch: {17: 1}}]"])
    judged = _recipe(tmp_path, tiny_pipeline_folder, pairs={"num_frames": 9, "prompts": 2})
    with pytest.raises(RequestError, match=r"data\.height=64 and data\.width=64 .* use 32 and 32"):
        run_recipe(judged, [run])


def test_a_users_clip_is_cut_not_squeezed(pipeline: TextToVideoPipeline, tmp_path: Path) -> None:
    clip = np.zeros((9, 48, 96, 3), dtype=np.uint8)
    clip[:, :, 24:72] = 200  # all of the square in the middle
    write_video(tmp_path / "wide.mp4", clip, 8.0)
    maker = ClipMaker(pipeline, PairsConfig(num_frames=9))
    seen: list[torch.Tensor] = []
    maker.encode = lambda frames: (seen.append(frames), torch.zeros(1, 1))[1]  # type: ignore[method-assign]
    PairFile([], maker)._encode(tmp_path / "wide.mp4")
    assert seen[0].shape == (1, 9, 32, 32, 3) and int(seen[0][0, :, 4:-4, 4:-4].min()) > 180
