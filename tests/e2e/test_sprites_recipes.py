"""The recipes that a newcomer runs: from nothing to a model, its student of four steps, and a clip of each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vgen.hub.find import read_json
from vgen.io.media.video import read_video
from vgen.training.chain import embedded_chain, read_chain
from vgen.training.provenance import read_record

CONFIGS = Path(__file__).parents[2] / "configs" / "train"


def test_the_chain_of_a_model_from_nothing(tmp_path: Path) -> None:
    links = read_chain(embedded_chain(), tmp_path)
    assert [link.path.resolve() for link in links] == [
        CONFIGS / f"{name}.yaml" for name in ("sprites_vae", "sprites_decoder", "sprites")
    ]
    exports = [link.export for link in links]
    assert exports == [tmp_path / name / "export" for name in ("sprites_vae", "sprites_decoder", "sprites")]
    assert (links[1].recipe.objective.init, links[2].recipe.objective.vae) == (exports[0], exports[1])


@pytest.mark.slow
def test_from_nothing_to_a_model_and_its_student(tmp_path: Path, run_cli: Callable[..., Any]) -> None:
    runs, student = tmp_path / "runs", tmp_path / "student"
    done = run_cli("train", "sprites", "--tiny", "-o", runs, "num_threads=1", "device=cpu")
    assert done.code == 0, done.err
    model = runs / "sprites" / "export"
    assert f"The model is {model}" in done.out
    fewer = (
        "objective.trajectories.text={1: 2, 17: 2}", "objective.trajectories.first={17: 2}",
        "objective.trajectories.batch=2", "objective.trajectories.judged=false", "objective.trajectories.dtype=float32",
        "objective.trajectories.substeps=1", "objective.trajectories.draft_steps=0", "objective.compile_blocks=false",
        "num_threads=1", "every.validate=0",
        "objective.validation_clips=2", "objective.sample_clips=1", "stages.0.steps=2", "stages.0.batch={1: 2, 17: 2}",
    )  # fmt: skip
    recipe = CONFIGS / "sprites_few_steps.yaml"
    trained = run_cli(
        "train", "run", recipe, f"objective.teacher={model}", f"output_dir={student}", "device=cpu", *fewer
    )
    assert trained.code == 0, trained.err
    assert read_json(student / "export" / "model_index.json")["defaults"]["num_inference_steps"] == 4
    record = read_record(student / "export")
    assert record is not None and record["from"]["teacher"]["recipe"] == "sprites"
    for folder in (model, student / "export"):
        clip = tmp_path / f"{folder.parent.name}.mp4"
        made = run_cli("generate", "a red circle moves left", "--model", folder, "--seed", 1, "-o", clip)
        assert made.code == 0, made.err
        assert read_video(clip).frames.shape == (17, 64, 64, 3)
