"""What a run builds before it trains."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vgen.errors import RequestError
from vgen.training.objectives.flow.flow import FlowObjective
from vgen.training.recipe import load_recipe
from vgen.training.run import build_objective, run_recipe

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("missing", ["vae", "init"])
def test_what_a_recipe_begins_with_is_looked_for_before_anything_is_built(missing: str, tmp_path: Path) -> None:
    """As after `vgen train run` of a recipe in the middle of the chain; nothing is asked of the network."""
    sprites = ROOT / "assets" / "sprites"
    places = {"vae": sprites / "vae", "init": sprites, missing: tmp_path / "no"}
    changes = [f"output_dir={tmp_path / 'run'}", *(f"objective.{name}={place}" for name, place in places.items())]
    with pytest.raises(RequestError, match=rf"objective\.{missing}=.*holds no model.*train the recipe that makes it"):
        run_recipe(ROOT / "configs" / "train" / "history" / "sprites_large.yaml", [*changes, "device=cpu"])
    assert not (tmp_path / "run" / "latents").exists()


def test_the_frozen_vae_is_where_the_run_trains_and_the_tokenizer_knows_both_objects(tmp_path: Path) -> None:
    """The cache, tasks that encode in the step, and samples use the VAE on the run's device."""
    recipe = load_recipe(
        ROOT / "configs" / "train" / "sprites_128.yaml", [f"objective.vae={ROOT / 'assets' / 'sprites' / 'vae'}"]
    )
    elsewhere: Any = SimpleNamespace(device=torch.device("meta"), main_process_first=nullcontext)
    unused: Any = None
    objective, _ = build_objective(recipe, tmp_path, unused, elsewhere, blank=True)
    assert isinstance(objective, FlowObjective) and objective.text_encoder is not None
    tokenizer = objective.pipeline.tokenizer
    assert {parameter.device.type for parameter in objective.vae.parameters()} == {"meta"}
    assert "▁colliding" in tokenizer.get_vocab() and len(tokenizer) <= 1024
    assert objective.text_encoder.config.vocab_size == len(tokenizer)
