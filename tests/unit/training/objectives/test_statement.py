"""The statement of a trained model: made from the grammar of its captions, its recipe and its VAE."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vgen.hub.find import resolve_model
from vgen.io.files import read_json
from vgen.models import CausalVideoVAE
from vgen.pipelines import TextToVideoPipeline
from vgen.request.trained import words_of
from vgen.training.config.data import SpritesConfig
from vgen.training.config.files import read_recipe
from vgen.training.data.sprites.grammar import PATTERN_WORDS, SIZE_WORDS, SPEED_WORDS, STOPS, VERBS
from vgen.training.data.sprites.palette import BACKGROUNDS, COLOURS
from vgen.training.data.sprites.shapes import SHAPES
from vgen.training.data.sprites.vocabulary import vocabulary
from vgen.training.data.sprites.world import SpriteWorld
from vgen.training.objectives.flow.build import load_pipeline
from vgen.training.objectives.flow.config import FineTuneObjectiveConfig
from vgen.training.objectives.statement import sprites_statement


def test_the_embedded_model_states_what_its_recipe_trained() -> None:
    recipe = read_recipe(Path("configs/train/history/sprites_continue.yaml"))
    folder = resolve_model("sprites")
    lengths = {count for stage in recipe["stages"] for count in stage["frames"]}
    made = sprites_statement(SpritesConfig(**recipe["data"]), lengths, CausalVideoVAE.from_pretrained(folder / "vae"))
    stated = read_json(folder / "model_index.json")["trained"]
    assert made.pop("reconstruction_psnr") == pytest.approx(stated.pop("reconstruction_psnr"), abs=0.11)
    assert made == stated


@pytest.mark.parametrize("tiers", [(1,), (1, 2, 3)])
def test_the_vocabulary_is_that_of_the_grammar(tiers: tuple[int, ...]) -> None:
    words = set(vocabulary(tiers))
    captions = (SpriteWorld("test", tier).sample(place, 1).caption for tier in tiers for place in range(40))
    assert {word for caption in captions for word in words_of(caption)} <= words
    expected = {*SHAPES, *COLOURS, *BACKGROUNDS, *(word for words in SIZE_WORDS.values() for word in words)}
    if 2 in tiers:
        phrases = [*VERBS.values(), STOPS]
        parts = [part.format(colour="", to="") for verbs in phrases for verb in verbs for part in verb]
        expected |= {word for part in parts for word in words_of(part)}
        expected |= {word for kind in (SPEED_WORDS, PATTERN_WORDS) for words in kind.values() for word in words}
    assert expected <= words
    assert ("while" in words) == (3 in tiers)


def test_fine_tuning_states_its_footage_too(make_native_components: Callable[..., Any], tmp_path: Path) -> None:
    stated = {"height": [32, 32], "width": [32, 32], "num_frames": [9, 9]}
    pipeline = TextToVideoPipeline(**make_native_components(), trained=stated)
    config = FineTuneObjectiveConfig.model_construct(model="any", mode="lora")
    source: Any = SimpleNamespace(
        samples=[SimpleNamespace(bucket=(5, 32, 48, 8.0))], index=SimpleNamespace(data=tmp_path)
    )
    models: Any = SimpleNamespace(pipeline=lambda *args, **settings: pipeline)
    parts: Any = SimpleNamespace(text_encoder_folder=None)
    loaded = load_pipeline(config, torch.float32, parts, source, models)
    assert loaded.config.trained == {"height": [32, 32], "width": [32, 48], "num_frames": [5, 9]}
