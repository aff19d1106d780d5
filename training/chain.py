"""Recipes in a row, each going on from what those before it exported; a chain that was stopped goes on where it was."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

import torch
import yaml
from torch import nn

from vgen.engine.device import release_memory
from vgen.errors import RequestError, bytes_text, counted, duration
from vgen.training.control import Control
from vgen.training.estimate.dry_run import Estimate, dry_run, exports_of
from vgen.training.model_sources import ConfigSource
from vgen.training.provenance import read_record, recipe_hash
from vgen.training.recipe import Recipe, load_recipe
from vgen.training.run import build_accelerator, build_objective, run_recipe

RUNS: Final = "runs"
"""Where recipes look for the exports of others, and where a chain writes unless another folder is given."""


class Link(NamedTuple):
    """A recipe of a chain: its file, the changes to it, and what comes out."""

    path: Path
    changes: tuple[str, ...]
    recipe: Recipe

    @property
    def export(self) -> Path:
        """The model that it makes."""
        return self.recipe.run_folder / "export"

    @property
    def is_done(self) -> bool:
        """Whether the export is there, of just this recipe, trained to its end."""
        made = read_record(self.export) if self.export.is_dir() else None
        return (
            made is not None
            and made["steps"] >= self.recipe.total_steps
            and made["recipe_sha256"] == recipe_hash(self.recipe)
        )


def embedded_chain() -> Path:
    """The chain that makes a model like the embedded one, from nothing."""
    return Path(str(files("vgen.configs") / "train" / "sprites_all.yaml"))


def is_chain(path: Path) -> bool:
    """Whether a YAML file lists recipes in place of being one."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, yaml.YAMLError):
        return False
    return isinstance(content, dict) and "chain" in content


def read_chain(path: Path, root: Path | None = None, overrides: Sequence[str] = (), tiny: bool = False) -> list[Link]:
    """The recipes of a chain, checked, in their order.

    Args:
        path: a YAML file with `chain: [FILE, ...]`, the files next to it.
        root: in place of runs/, for what is written and for what a recipe takes from an earlier one.
        overrides: "key=value" for every recipe, or "NAME:key=value" for one.
        tiny: a run-through in a minute: a step or two of each stage, on a few clips. The models are worth nothing.
    Raises:
        RequestError: the chain or a recipe is wrong, or a recipe takes weights from runs/ that none before it makes.
    """
    content = yaml.safe_load(path.read_text(encoding="utf-8-sig")) if is_chain(path) else None
    listed = content["chain"] if content and set(content) == {"chain"} else None
    if not isinstance(listed, list) or not listed or not all(isinstance(name, str) for name in listed):
        raise RequestError(f"chain={path} must hold one key, chain, with a list of recipes' files.")
    links: list[Link] = []
    named = [override.partition(":") for override in overrides if ":" in override.partition("=")[0]]
    for name in listed:
        file = path.parent / name
        own = [changes for _, _, changes in (part for part in named if part[0] == load_recipe(file).name)]
        common = [override for override in overrides if ":" not in override.partition("=")[0]]
        changes = [*(tiny_changes(load_recipe(file)) if tiny else []), *common, *own]
        changes += _moved(load_recipe(file, changes), root)
        links.append(Link(file, tuple(changes), load_recipe(file, changes)))
    known = {link.recipe.name for link in links}
    for name, _, _ in named:
        if name not in known:
            raise RequestError(f"{name!r} is no recipe of {path.name}; it has {', '.join(sorted(known))}.")
    _check_sources(links, root or Path(RUNS))
    return links


def run_chain(links: Sequence[Link], say: Callable[[str], None], resume: bool = True) -> bool:
    """Train one recipe after the other; what is done already is passed over.

    Args:
        links: of `read_chain`.
        say: called with the recipe that begins.
        resume: as for `run_recipe`.
    Returns:
        False where a recipe was asked to stop; the same call goes on from there.
    """
    for number, link in enumerate(links, 1):
        title = f"recipe {number} of {len(links)}: {link.recipe.name}"
        if link.is_done:
            say(f"{title} is done; its model is {link.export}")
            continue
        say(f"{title}, {counted(link.recipe.total_steps, 'step')}, in {link.recipe.run_folder}")
        run_recipe(link.path, list(link.changes), resume=resume)
        if not link.is_done:
            say(f"stopped in {title}; the same command goes on")
            return False
        release_memory()
    return True


def dry_run_chain(links: Sequence[Link], say: Callable[[str], None], measure: bool = False) -> list[Estimate]:
    """What each recipe takes, and all together; untrained models stand in for what is not there yet.

    Recipes that are done count with nothing.

    Args:
        links: of `read_chain`.
        say: gets the lines to show.
        measure: see `dry_run`.
    """
    estimates: list[Estimate] = []
    models = ConfigSource()
    with TemporaryDirectory() as name:
        stand_ins: dict[Path, Path] = {}
        for number, link in enumerate(links, 1):
            if link.is_done:
                say(f"recipe {number} of {len(links)}: {link.recipe.name} is done")
                continue
            replaced = [
                f"objective.{key}={stand_ins[place]}"
                for key, place in link.recipe.objective.sources().items()
                if place in stand_ins
            ]
            recipe = load_recipe(link.path, [*link.changes, *replaced])
            estimate = dry_run(recipe, measure=measure, models=models)
            estimates.append(estimate)
            say(f"recipe {number} of {len(links)}: {recipe.name}, {counted(recipe.total_steps, 'step')}")
            for line in estimate.lines():
                say(f"  {line}")
            if measure and link is not links[-1] and not link.export.is_dir():
                stand_ins[link.export] = _stand_in(link, [*link.changes, *replaced], Path(name))
            if measure:
                release_memory()
    if estimates:
        peak = max(estimate.peak for estimate in estimates)
        seconds = sum(estimate.seconds for estimate in estimates)
        say(f"together: memory {bytes_text(peak)} per process, time {duration(seconds)}")
    return estimates


def configs_next_to(path: Path) -> ConfigSource:
    """Models from configurations; those that are not there yet from the recipes next to one, which make them."""

    def make(place: Path) -> Mapping[str, nn.Module] | None:
        for file in sorted(path.parent.glob("*.yaml"), key=lambda file: file.stem != place.parent.name):
            recipe = None if is_chain(file) else load_recipe(file)
            if recipe is not None and recipe.run_folder / "export" == place:
                return exports_of(recipe, models)
        return None

    models = ConfigSource(make)
    return models


def tiny_changes(recipe: Recipe) -> list[str]:
    """Overrides that make a recipe's run last seconds, and still go through all that it does."""
    changes = ["schedule={name: constant, warmup_steps: 0}", "every={log: 1, checkpoint: 1000, validate: 1000}"]
    for number, stage in enumerate(recipe.stages):
        changes.append(f"stages.{number}.steps=1")
        changes.append(f"stages.{number}.batch={_as_yaml(dict.fromkeys(stage.batch, 2))}")
    return changes + [f"objective.{key}={_as_yaml(value)}" for key, value in recipe.objective.tiny().items()]


def _as_yaml(value: Any) -> str:
    """A value as YAML on one line."""
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("...\n").strip()


def _moved(recipe: Recipe, root: Path | None) -> list[str]:
    """Changes that let a recipe write below `root`, and take from there what it would take from runs/."""
    if root is None:
        return []
    changes = [f"output_dir={root / recipe.name}"]
    for key, place in recipe.objective.sources().items():
        if place.parts[:1] == (RUNS,):
            changes.append(f"objective.{key}={root.joinpath(*place.parts[1:])}")
    return changes


def _check_sources(links: Sequence[Link], root: Path) -> None:
    made: list[Path] = []
    for link in links:
        for key, place in link.recipe.objective.sources().items():
            if place.is_relative_to(root) and place not in made:
                raise RequestError(
                    f"{link.path.name}: objective.{key}={place} is made by no recipe before it; "
                    f"those make {', '.join(map(str, made)) or 'nothing'}."
                )
        made.append(link.export)


def _stand_in(link: Link, changes: list[str], folder: Path) -> Path:
    """An untrained model in the place of the one that a recipe will make."""
    tiny = link.recipe.objective.tiny()
    fewer = [f"objective.{key}={tiny[key]}" for key in ("statistics_clips",) if key in tiny]
    recipe = load_recipe(link.path, [*changes, *fewer])
    scratch, export = folder / f"{recipe.name}.run", folder / recipe.name / "export"
    control = Control(scratch)
    objective, _ = build_objective(recipe, scratch, control, build_accelerator(recipe, scratch), blank=True)
    with torch.no_grad():
        objective.finish(export, torch.float32, control)
    return export
