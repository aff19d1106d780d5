"""Recipes: what is refused, and what an override does."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from vgen.errors import RequestError
from vgen.training.config import VaeObjectiveConfig, load_recipe

CONFIGS = Path(__file__).parents[3] / "configs" / "train"


def _write(path: Path, **changes: object) -> Path:
    content = {
        "name": "tiny",
        "objective": {"kind": "vae", "model": {}},
        "stages": [{"steps": 3, "frames": {1: 1.0}, "batch": {1: 2}}],
        **changes,
    }
    path.write_text(yaml.safe_dump(content))
    return path


CHAINS = ("sprites_all",)  # names of recipes in a row, see vgen.training.chain


@pytest.mark.parametrize("name", sorted({path.stem for path in CONFIGS.glob("*.yaml")} - set(CHAINS)))
def test_the_shipped_recipes_are_valid(name: str) -> None:
    recipe = load_recipe(CONFIGS / f"{name}.yaml")
    assert recipe.name == name
    assert recipe.total_steps == sum(stage.steps for stage in recipe.stages)


def test_overrides_reach_every_level(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.yaml")
    recipe = load_recipe(
        path,
        ["optimizer.lr=1e-4", "stages.0.batch.1=7", "every.validate=0", "objective.kl_weight=0", "output_dir=there"],
    )
    assert recipe.optimizer.lr == 1e-4
    assert recipe.stages[0].batch == {1: 7}
    assert recipe.every.validate_ == 0
    assert isinstance(recipe.objective, VaeObjectiveConfig)
    assert recipe.objective.kl_weight == 0
    assert recipe.run_folder == Path("there")


def test_no_is_a_word_here_whatever_yaml_says(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.yaml")
    assert load_recipe(path, ["mixed_precision=bf16"]).mixed_precision == "bf16"
    assert load_recipe(path, ["mixed_precision=no"]).mixed_precision == "no"


def test_a_run_without_output_dir_goes_to_its_name(tmp_path: Path) -> None:
    assert load_recipe(_write(tmp_path / "a.yaml")).run_folder == Path("runs/tiny")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.learning_rate=1", "optimizer.learning_rate: unknown key"),
        ("optimizer.lr=-1", "optimizer.lr"),
        ("stages.3.steps=1", "no position in a list of 1"),
        ("stages.0.batch={17: 2}", "batch has no size for num_frames=1"),
        ("checkpoint.keep=1", "checkpoint.keep"),
        ("name.first=x", "inside a plain value"),
        ("nonsense", "not of the form key=value"),
        ("objective.kind=gan", "objective"),
    ],
)
def test_refusals_name_the_field(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        load_recipe(_write(tmp_path / "a.yaml"), [override])


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="there is no such file"):
        load_recipe(tmp_path / "missing.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [")
    with pytest.raises(RequestError, match="not valid YAML"):
        load_recipe(broken)
    broken.write_text("- 1")
    with pytest.raises(RequestError, match="holds no mapping"):
        load_recipe(broken)
