"""Recipes: what is refused, and what an override does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from vgen.errors import RequestError
from vgen.models import CausalVideoVAE
from vgen.training.chain import is_chain
from vgen.training.config.data import SpritesConfig
from vgen.training.objectives.flow.build import build_transformer
from vgen.training.objectives.flow.config import FlowObjectiveConfig
from vgen.training.objectives.flow.text_encoder import build_text_encoder
from vgen.training.objectives.vae.config import VaeObjectiveConfig
from vgen.training.recipe import load_recipe

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


RECIPES = sorted(path for path in CONFIGS.rglob("*.yaml") if not is_chain(path))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_the_shipped_recipes_are_valid(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert recipe.total_steps == sum(stage.steps for stage in recipe.stages)


def test_the_larger_model_fits_into_24_mebibytes_and_trains_on_what_its_vae_does() -> None:
    """In float16, as it is exported; counted without making the weights."""
    vae_recipe, recipe = load_recipe(CONFIGS / "sprites_128_vae.yaml"), load_recipe(CONFIGS / "sprites_128.yaml")
    assert isinstance(vae_recipe.objective, VaeObjectiveConfig) and isinstance(recipe.objective, FlowObjectiveConfig)
    assert isinstance(recipe.data, SpritesConfig) and recipe.data.tier == [1, 2, 3]
    assert vae_recipe.data == recipe.data.model_copy(update={"workers": vae_recipe.data.workers})
    assert recipe.objective.vae == vae_recipe.run_folder / "export"
    with torch.device("meta"):
        vae = CausalVideoVAE(**vae_recipe.objective.model)
        parts = (
            vae,
            build_transformer(recipe.objective, vae.config.latent_channels, 0),
            build_text_encoder(recipe.objective, recipe.objective.text_encoder.vocabulary, 0),
        )
    weights = sum(parameter.numel() for part in parts for parameter in part.parameters())
    assert recipe.export_dtype == "float16" and 2 * weights < 23.5 * 2**20


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
