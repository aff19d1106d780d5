"""Recipes in a row: each finds the one before it, what is done is passed over, a stop ends the row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vgen.errors import RequestError
from vgen.training import chain
from vgen.training.chain import is_chain, read_chain, run_chain
from vgen.training.provenance import TRAINING, read_record, record, trained_seconds
from vgen.training.recipe import load_recipe

HISTORY = Path(__file__).parents[3] / "configs" / "train" / "history" / "sprites_all.yaml"
NAMES = [
    "sprites_vae",
    "sprites_decoder",
    "sprites_t2v",
    "sprites_tasks",
    "sprites_prefix",
    "sprites_motions",
    "sprites_paths",
    "sprites_curves",
    "sprites_outlines",
    "sprites_objects",
    "sprites_large",
    "sprites_contours",
    "sprites_edges",
    "sprites_continue",
]


def test_the_embedded_models_recipes_take_what_those_before_export(tmp_path: Path) -> None:
    links = read_chain(HISTORY, tmp_path)
    assert [link.recipe.name for link in links] == NAMES
    folders = [tmp_path / name / "export" for name in NAMES]
    assert [link.export for link in links] == folders
    assert links[1].recipe.objective.init == folders[0]
    assert links[2].recipe.objective.vae == folders[1]
    for place in range(3, 8):
        objective = links[place].recipe.objective
        assert (objective.vae, objective.init) == (folders[1], folders[place - 1])
    assert [links[place].recipe.objective.init for place in (8, 9)] == [folders[1], folders[8]]
    assert (links[10].recipe.objective.vae, links[10].recipe.objective.init) == (folders[9], folders[7])
    assert [links[place].recipe.objective.init for place in (11, 12)] == [folders[9], folders[11]]
    assert (links[13].recipe.objective.vae, links[13].recipe.objective.init) == (folders[12], folders[10])
    assert is_chain(HISTORY) and not is_chain(links[0].path)


def test_a_tiny_chain_keeps_its_stages_and_changes_reach_their_recipe(tmp_path: Path) -> None:
    links = read_chain(HISTORY, tmp_path, ["seed=7"], True)
    assert all(link.recipe.seed == 7 and link.recipe.total_steps == len(link.recipe.stages) for link in links)
    named = read_chain(HISTORY, tmp_path, ["sprites_t2v:objective.text_drop=0.5"])
    assert [getattr(link.recipe.objective, "text_drop", None) for link in named] == [
        *[None, None, 0.5],
        *[0.1] * 5,
        *[None, None, 0.1],
        *[None, None, 0.1],
    ]
    with pytest.raises(RequestError, match="'sprites_tv' is no recipe"):
        read_chain(HISTORY, tmp_path, ["sprites_tv:seed=1"])


def test_a_chain_in_the_wrong_order_is_refused(tmp_path: Path) -> None:
    folder = HISTORY.parent
    for name in NAMES:
        (tmp_path / f"{name}.yaml").write_text((folder / f"{name}.yaml").read_text())
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("chain: [sprites_vae.yaml, sprites_t2v.yaml]\n")
    with pytest.raises(
        RequestError, match=r"objective\.vae=runs/sprites_decoder/export is made by no recipe before it"
    ):
        read_chain(wrong)
    for content in ("chain: []\n", "chain: [sprites_vae.yaml]\nmore: 1\n", "chain: 3\n"):
        wrong.write_text(content)
        with pytest.raises(RequestError, match="must hold one key, chain"):
            read_chain(wrong)


def test_a_stopped_chain_goes_on_with_the_recipe_that_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    links, ran, stop_at = read_chain(HISTORY, tmp_path, tiny=True), [], [2]

    def train(path: Path, changes: list[str], resume: bool) -> None:
        recipe = load_recipe(path, changes)
        ran.append(recipe.name)
        if len(ran) != stop_at[0]:
            export = recipe.run_folder / "export"
            export.mkdir(parents=True)
            made = {"steps": recipe.total_steps, "recipe_sha256": chain.recipe_hash(recipe)}
            (export / TRAINING).write_text(json.dumps(made))

    monkeypatch.setattr(chain, "run_recipe", train)
    said: list[str] = []
    assert not run_chain(links, said.append)
    assert ran == NAMES[:2] and "the same command goes on" in said[-1]
    stop_at[0] = 0
    assert run_chain(links, said.append)
    assert ran == [*NAMES[:2], *NAMES[1:]]
    other = read_chain(HISTORY, tmp_path, ["seed=9"], tiny=True)
    assert not any(link.is_done for link in other), "another recipe is another model"


def test_a_chain_that_was_moved_is_still_done(tmp_path: Path) -> None:
    for link in read_chain(HISTORY, tmp_path / "before", tiny=True):
        link.export.mkdir(parents=True)
        made = {"steps": link.recipe.total_steps, "recipe_sha256": chain.recipe_hash(link.recipe)}
        (link.export / TRAINING).write_text(json.dumps(made))
    (tmp_path / "before").rename(tmp_path / "after")
    assert all(link.is_done for link in read_chain(HISTORY, tmp_path / "after", tiny=True))
    third = read_chain(HISTORY, tmp_path / "after", tiny=True)[2]
    other = load_recipe(third.path, [*third.changes, f"objective.vae={tmp_path / 'after' / 'sprites_vae' / 'export'}"])
    assert chain.recipe_hash(other) != chain.recipe_hash(third.recipe), "another model among the runs counts"


def test_the_record_counts_the_time_of_all_starts(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    rows = [{"seconds": 5.0}, {"seconds": 9.0}, {"validation/loss": 1.0}, {"seconds": 2.0}, {"seconds": 4.5}]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"sec')
    assert trained_seconds(log) == 13.5 and trained_seconds(tmp_path / "no.jsonl") is None
    recipe = read_chain(HISTORY, tmp_path)[3].recipe
    (tmp_path / "sprites_t2v" / "export").mkdir(parents=True)
    (tmp_path / "sprites_t2v" / "export" / TRAINING).write_text('{"recipe": "sprites_t2v"}')
    made = record(recipe, log, 40)
    assert (made["steps"], made["total_steps"], made["seconds"]) == (40, recipe.total_steps, 13.5)
    assert made["from"] == {"vae": None, "init": {"recipe": "sprites_t2v"}}


def test_a_part_that_a_model_took_over_was_made_by_another_run(tmp_path: Path) -> None:
    model = tmp_path / "model"
    for part in ("vae", "transformer"):
        (model / part).mkdir(parents=True)
    made = {"recipe": "tasks", "from": {"vae": {"recipe": "decoder"}, "init": None}}
    (model / TRAINING).write_text(json.dumps(made))
    assert read_record(model) == read_record(model / "transformer") == made
    assert read_record(model / "vae") == {"recipe": "decoder"}
    (model / TRAINING).write_text(json.dumps({**made, "from": {"vae": None}}))
    assert read_record(model / "vae") is None, "the run that took it over did not make it"
