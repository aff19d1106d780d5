"""From a recipe to a preference run: the model, its pairs and what moves it."""

from __future__ import annotations

from pathlib import Path

from vgen.errors import RequestError
from vgen.hub.find import model_hash
from vgen.training.config.data import SpritesConfig
from vgen.training.data.clips import SpriteClips
from vgen.training.data.prompts import SpritePrompts
from vgen.training.objectives.loaded import load_frozen
from vgen.training.objectives.preference.config import PreferenceObjectiveConfig
from vgen.training.objectives.preference.pair_sources import ClipMaker, JudgedPairs, PairFile, read_pair_file
from vgen.training.objectives.preference.pairs import PairBatches, PairCache, PairSource
from vgen.training.objectives.preference.preference import PreferenceObjective
from vgen.training.objectives.registry import Setup, builds, data_of


@builds(PreferenceObjectiveConfig)
def build(config: PreferenceObjectiveConfig, setup: Setup) -> tuple[PreferenceObjective, PairBatches]:
    """The objective, its cached pairs filled."""
    run = setup.run
    data = data_of(config, run, SpritesConfig)
    lines = None if config.pairs.file is None else _split_file(config.pairs.file, config.validation_prompts)
    pipeline, place = load_frozen(setup, "model", config.model)
    maker = ClipMaker(pipeline, config.pairs)
    sources: list[PairSource]
    if lines is None:
        sources = [*_judged_sources(data, run.seed, config, maker)]
    else:
        sources = [PairFile(part, maker) for part in lines]
    caches = [PairCache(config.pairs, source, maker, model_hash(place), setup.folder / "pairs") for source in sources]
    for cache in caches:
        setup.fill(cache)
    objective = PreferenceObjective(config, maker, caches[1], run.seed, setup.device, setup.models)
    return objective, PairBatches(caches[0])


def _judged_sources(
    data: SpritesConfig, seed: int, config: PreferenceObjectiveConfig, maker: ClipMaker
) -> list[JudgedPairs]:
    asked, made = (data.height, data.width), (maker.settings.height, maker.settings.width)
    if asked != made:
        raise RequestError(
            f"data.height={asked[0]} and data.width={asked[1]} are not what {config.model} makes by itself: use "
            f"{made[0]} and {made[1]}."
        )
    counts = {"train": config.pairs.prompts, "validation": config.validation_prompts}
    return [
        JudgedPairs(config.pairs, SpritePrompts(SpriteClips(data, split), True), maker, seed + place, count)
        for place, (split, count) in enumerate(counts.items())
    ]


def _split_file(path: Path, held_out: int) -> list[list[dict[str, str]]]:
    """The lines of a file of pairs, and the last of them, which are held out."""
    lines = read_pair_file(path)
    if held_out >= len(lines):
        raise RequestError(
            f"objective.validation_prompts={held_out} leaves none of the {len(lines)} pairs of {path} to train on; use "
            f"at most {len(lines) - 1}."
        )
    return [lines[:-held_out], lines[-held_out:]]
