"""Choices to recipes, and savings of memory that are computed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from vgen.errors import RequestError
from vgen.training.data.footage.buckets import Bucket, Sample
from vgen.training.data.footage.cache import CacheIndex
from vgen.training.fine_tune.memory import run_memory
from vgen.training.fine_tune.presets import FineTune, fine_tune_recipe, fit_memory, write_recipe
from vgen.training.recipe import Recipe, load_recipe

BUCKETS = [Bucket(17, 48, 80, 8.0)] * 3 + [Bucket(1, 64, 64, 8.0)]
SAMPLES = tuple(Sample(str(n), "c", ".", bucket, (0,)) for n, bucket in enumerate(BUCKETS))
INDEX = CacheIndex(Path("ds"), "sprites", None, "h", 64, "cpu", {}, SAMPLES, ())
COSTS = {"mixed_precision": 6e9, "gradient_checkpointing": 4e9, "optimizer": 1e9, "base_weights": 5e9}


def _measure(asked: FineTune) -> int:
    """22 GB, less what each saving saves."""
    plain = FineTune()
    return int(22e9 - sum(cost for name, cost in COSTS.items() if getattr(asked, name) != getattr(plain, name)))


def _recipe(**changes):
    return fine_tune_recipe("a", Path("run"), Path("index.json"), INDEX, FineTune(**changes))


def test_lengths_are_drawn_as_often_as_there_are_samples() -> None:
    recipe = Recipe.model_validate(_recipe(batch=2, image_batch=5, steps=40))
    stage = recipe.stages[0]
    assert stage.frames == {1: 1.0, 17: 3.0} and stage.batch == {1: 5, 17: 2}
    assert recipe.optimizer.lr == 2e-4 and recipe.checkpoint.keep == 5
    assert Recipe.model_validate(_recipe(mode="full")).optimizer.lr == 1e-5


@pytest.mark.slow
def test_memory_is_told_before_anything_runs() -> None:
    plain = run_memory(INDEX, FineTune(batch=2))
    assert plain > 20e6  # the embedded model's weights alone, and those of its VAE
    assert run_memory(INDEX, FineTune(batch=8)) > plain
    for saving in ({"mixed_precision": "bf16"}, {"gradient_checkpointing": True}, {"base_weights": "int8"}):
        assert run_memory(INDEX, FineTune(batch=2, **saving)) < plain, saving
    assert fit_memory(FineTune(batch=2), "8gb", lambda asked: run_memory(INDEX, asked)) == FineTune(batch=2)


def test_small_buckets_are_repeated_or_refused() -> None:
    _recipe(batch=2)
    with pytest.raises(RequestError, match="1 x 64 x 64 at 8 has 1"):
        _recipe(batch=2, small_buckets="refuse")
    with pytest.raises(RequestError, match="use wrap or refuse"):
        _recipe(small_buckets="lose")


def test_wrong_choices_are_named() -> None:
    with pytest.raises(RequestError, match="'middle' is not known"):
        _recipe(tasks={"middle": 1.0})
    with pytest.raises(ValueError, match="base_weights=int8"):
        Recipe.model_validate(_recipe(mode="full", base_weights="int8"))


@pytest.mark.parametrize(
    ("preset", "saved"),
    [
        ("80gb", set()),
        ("24gb", {"mixed_precision"}),  # nine tenths of it are 21.6 GB
        ("16gb", {"mixed_precision", "gradient_checkpointing"}),
        ("8gb", set(COSTS)),
    ],
)
def test_a_preset_saves_no_more_than_it_must(preset, saved) -> None:
    made = fit_memory(FineTune(), preset, _measure)
    assert {name for name in COSTS if getattr(made, name) != getattr(FineTune(), name)} == saved


def test_what_fits_in_no_way_is_refused() -> None:
    with pytest.raises(RequestError, match=r"the run needs 17\.00 GB .* 7\.20 GB are allowed"):
        fit_memory(FineTune(), "8gb", lambda asked: _measure(asked) + int(11e9))
    with pytest.raises(RequestError, match="use 8gb, 16gb"):
        fit_memory(FineTune(), "12gb", _measure)


def test_a_recipe_is_written_once(tmp_path) -> None:
    file = write_recipe(tmp_path, _recipe(), ["every.validate=7", "optimizer.lr=1e-3"])
    recipe = load_recipe(file)
    assert recipe.every.validate_ == 7 and recipe.optimizer.lr == 1e-3
    write_recipe(tmp_path, _recipe(), ["every.validate=7", "optimizer.lr=1e-3"])
    with pytest.raises(RequestError, match="another recipe"):
        write_recipe(tmp_path, _recipe())


def test_another_recipe_is_refused_with_the_changes_that_resuming_needs(tmp_path) -> None:
    file = write_recipe(tmp_path, _recipe())
    stored = file.read_text()
    with pytest.raises(RequestError, match=r"stages\.0\.steps is 1500 there and 8 here") as refused:
        write_recipe(tmp_path, _recipe(), ["stages.0.steps=8", "every.validate=7"])
    command = re.search(r"`vgen train resume \S+ (--set [^`]+)`", str(refused.value))
    assert command is not None
    settings = [word for word in shlex.split(command[1]) if word != "--set"]
    recipe = load_recipe(file, settings)
    assert (recipe.total_steps, recipe.every.validate_) == (8, 7)
    assert file.read_text() == stored


def test_a_wrong_setting_is_refused_before_the_recipe_is_written(tmp_path) -> None:
    with pytest.raises(RequestError, match=r"every\.validat: unknown key"):
        write_recipe(tmp_path, _recipe(), ["every.validat=7"])
    assert not any(tmp_path.iterdir())
