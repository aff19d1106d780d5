"""The embedded model: it is shipped whole and small, obeys its prompts, and its scores are its own doing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vgen.errors import RequestError
from vgen.hub.find import resolve_model
from vgen.io.media.video import read_video
from vgen.pipelines import MaskedPredictionPipeline, TextToVideoPipeline, VideoCondition
from vgen.training.data.sprites.world import SpriteWorld
from vgen.training.evaluate.evaluate import evaluate_model, planned_clips
from vgen.training.evaluate.measures import MEASURES, read_measures
from vgen.training.evaluate.model import Budget, ScoredModel, canvas, full_prompt, generators, reconstruct
from vgen.training.evaluate.report import render
from vgen.training.evaluate.scores import squared_error, text_to_video
from vgen.training.evaluate.task_scores import hidden_box

LIMIT_MIB = 24
PROMPTS = 24


@pytest.fixture(scope="module")
def folder() -> Path:
    return Path(resolve_model("sprites"))


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> TextToVideoPipeline:
    loaded = TextToVideoPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def test_it_is_small_and_safetensors_only(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= LIMIT_MIB * 2**20
    weights = {path.suffix for path in files} - {".json", ".md", ".txt"}
    assert weights == {".safetensors"}


def test_no_config_tells_where_it_was_made(folder: Path) -> None:
    assert [path for path in folder.rglob("*.json") if "_name_or_path" in path.read_text()] == []


def test_its_strides_are_8_by_8_by_4(pipeline: TextToVideoPipeline) -> None:
    assert tuple(pipeline.vae.strides) == (4, 8, 8)


@pytest.mark.slow
def test_it_obeys_where_random_weights_do_not(folder: Path) -> None:
    """The same measurement, with the shipped transformer and with a freshly initialised one."""
    shipped = TextToVideoPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    shipped.set_progress_bar_config(disable=True)
    budget = Budget(clips=0, prompts=PROMPTS, seeds=1, batch=12)
    settings = {"num_inference_steps": 12}
    obeyed = text_to_video("seen").run(ScoredModel(shipped, 1, budget, settings=settings))
    shipped.transformer.init_weights(torch.Generator().manual_seed(0))
    random = text_to_video("seen").run(ScoredModel(shipped, 1, budget, settings=settings))
    assert obeyed["colour"]["mean"] >= 0.9
    assert random["colour"]["mean"] <= 0.4
    assert obeyed["shape"]["mean"] >= 0.75
    assert random["shape"]["mean"] <= 0.5
    assert obeyed["joint"]["mean"] >= 0.6
    floors = [floor["mean"] for floor in random["floors"].values()]
    assert random["joint"]["mean"] <= max(floors) + 0.05


def test_evaluate_prints_and_writes_every_score(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    target = tmp_path / "scores.json"
    budget = Budget(clips=2, prompts=2, seeds=1, batch=2)
    page = tmp_path / "README.md"
    report = evaluate_model(
        folder, output=target, budget=budget, report=page, guidance=(2.0, 4.0), command="vgen", num_inference_steps=2
    )
    assert page.read_text() == render(report) and not list(tmp_path.glob("*.jsonl"))
    assert report["guidance"]["chosen"] == report["settings"]["guidance_scale"] in (2.0, 4.0)
    assert json.loads(target.read_text()) == json.loads(json.dumps(report))
    printed = capsys.readouterr().out
    for row in ("VAE: PSNR", "text to video, seen", "text to video, withheld", "image to video", "ceiling", "floors"):
        assert row in printed
    assert set(report["scores"]) == {"tier 1", "tier 2"}
    assert "prediction" not in printed


@pytest.mark.slow
def test_evaluate_scores_what_is_known_in_part(
    folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = Budget(clips=1, prompts=2, seeds=1, batch=2)
    planned, ran = planned_clips(budget, (1,), MEASURES), []
    monkeypatch.setattr("vgen.training.evaluate.evaluate._speaker", lambda: lambda text: ran.append(text.split(":")[0]))
    report = evaluate_model(folder, budget=budget, tiers=(1,), tasks="all", num_inference_steps=2)
    assert set(ran) == set(planned), "the time left counts what is measured, and nothing else"
    printed = capsys.readouterr().out
    for row in (
        "prediction, 5",
        "prediction, 9",
        "interpolation: centre",
        "completion: PSNR of the",
        "the hidden",
        "the known",
    ):
        assert row in printed
    found = report["scores"]["tier 1"]
    assert {"prediction", "interpolation", "completion"} <= set(found)
    assert found["prediction"]["given_5"]["error"]["count"] == 2


@pytest.mark.slow
def test_evaluate_measures_what_is_named_and_nothing_else(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget, page = Budget(clips=1, prompts=1, seeds=1, batch=1), tmp_path / "page.md"
    ran: list[str] = []
    monkeypatch.setattr("vgen.training.evaluate.evaluate._speaker", lambda: lambda text: ran.append(text.split(":")[0]))
    for tasks, names in (("lengths, image-to-video", ("image_to_video", "lengths")), ("stories", ("stories",))):
        ran.clear()
        asked = {"tiers": (1,), "tasks": tasks, "num_inference_steps": 1}
        report = evaluate_model(folder, budget=budget, report=page, **asked)
        assert tuple(report["scores"]["tier 1"]) == names
        assert set(ran) == set(planned_clips(budget, (1,), read_measures(tasks)))
        printed, written = capsys.readouterr().out, page.read_text()
        for text in (printed, written):
            assert "VAE: PSNR" not in text and "withheld:" not in text
            assert ("stories" in text) == (tasks == "stories")
        assert "by motion" not in written
    for wrong in ("", "everything", "vae,sound"):
        with pytest.raises(RequestError, match="is not known: use basic, all, or some of vae, text_to_video"):
            evaluate_model(folder, budget=budget, tasks=wrong)


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_elsewhere_and_with_workers(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = Budget(clips=2, prompts=2, seeds=1, batch=2)
    asked: dict[str, Any] = {"budget": budget, "tiers": (1,), "num_inference_steps": 1}
    whole = evaluate_model(folder, **asked)
    target = tmp_path / "scores.json"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ScoredModel, "from_text", _interrupted_at_pictures)
        evaluate_model(folder, output=target, **asked)
    parts = tmp_path / "scores.parts.jsonl"
    parts.write_text(parts.read_text().replace('"place": "cpu ', '"place": "cuda '))
    asked["budget"] = budget._replace(batch=1)
    report = evaluate_model(folder, output=target, workers=1, **asked)
    assert report["device"] == " and ".join(f"{name} with torch {torch.__version__}" for name in ("cuda", "cpu"))
    assert whole["device"] == "cpu" and not parts.exists()
    assert report["scores"]["tier 1"].keys() == whole["scores"]["tier 1"].keys()
    for task in ("vae", "text_to_video", "image_to_video"):
        assert report["scores"]["tier 1"][task] == whole["scores"]["tier 1"][task]
    assert report["scores"]["tier 1"]["images"] == whole["scores"]["tier 1"]["images"], "in other batches, too"


def _interrupted_at_pictures(
    model: ScoredModel, prompts: list[str], numbers: range, from_text: Any = ScoredModel.from_text, **settings: Any
) -> Any:
    if settings.get("num_frames") == 1:
        raise KeyboardInterrupt
    return from_text(model, prompts, numbers, **settings)


def test_any_length_of_1_plus_4k_fits(pipeline: TextToVideoPipeline) -> None:
    for num_frames in (1, 5, 33):
        made = pipeline("a red circle", num_frames=num_frames, num_inference_steps=1, output_type="np").frames
        assert made.shape == (1, num_frames, 64, 64, 3)


def test_each_pass_brings_known_pixels_back_better(pipeline: TextToVideoPipeline) -> None:
    """Two passes keep what is around a hidden box as well as coding the whole clip does, and leave the inside alone."""
    world, known = SpriteWorld("validation", 1, **canvas(pipeline)), hidden_box(64, 64)
    clips = [world.sample(index) for index in range(4)]
    frames = np.stack([clip.frames for clip in clips])
    predict = MaskedPredictionPipeline(**pipeline.components)
    predict.set_progress_bar_config(disable=True)
    made = [
        np.stack(
            predict(
                conditions=[[VideoCondition(clip.frames, mask=known.astype(np.float32))] for clip in clips],
                prompt=[full_prompt(clip) for clip in clips],
                generator=generators(0, range(4)),
                num_inference_steps=8,
                known_passes=passes,
                keep_known_pixels=False,
                output_type="uint8",
            ).frames
        )
        for passes in (0, 1, 2)
    ]
    errors = [squared_error(frames, clip) for clip in (*made, reconstruct(pipeline, frames))]
    never, once, twice, coded = (float(error[..., known].mean()) for error in errors)
    assert twice < 0.9 * once < 0.9 * never
    assert twice < 10**0.05 * coded  # half a decibel
    inside = [float(error[..., ~known].mean()) for error in errors[:3]]
    assert inside[2] == pytest.approx(inside[0], rel=0.05)


def test_generation_runs_without_the_training_package(tmp_path: Path) -> None:
    """A process in which vgen.training cannot be imported generates all the same."""
    target = tmp_path / "clip.mp4"
    code = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.startswith('vgen.training'):\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "from vgen.cli import main\n"
        f"sys.argv = ['vgen', 'generate', 'a red circle moves left', '--seed', '1', '-o', {str(target)!r}]\n"
        "main()\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    clip = read_video(target)
    assert clip.frames.shape == (17, 64, 64, 3)


def test_the_readme_prompt_shows_a_red_object_on_black(pipeline: TextToVideoPipeline) -> None:
    made = pipeline(
        "a red circle moves to the left on a black background",
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).frames[0]
    red = (made[..., 0] > 0.6) & (made[..., 1] < 0.4) & (made[..., 2] < 0.4)
    dark = (made < 0.2).all(-1)
    assert (red.mean(axis=(1, 2)) > 0.01).mean() > 0.8
    assert dark.mean() > 0.7
