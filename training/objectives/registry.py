"""Which objectives there are: each registers its configuration and what builds it, and nobody else asks its type."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import torch

from vgen.errors import RequestError
from vgen.training.config.base import Strict
from vgen.training.config.data import FootageConfig, SpritesConfig
from vgen.training.config.run import RunConfig
from vgen.training.data.plan import BatchPlan, Source
from vgen.training.data.shards import ShardCache
from vgen.training.model_sources import LOADED, ModelSource
from vgen.training.objectives.base import Objective


class ObjectiveConfig(Strict):
    """The `objective` section of a recipe; its `kind` is a literal of the subclass."""

    kind: str

    @property
    def lengths(self) -> list[int] | None:
        """num_frames of the clips that there are to learn from; None: of whatever length the data has."""
        return None

    @property
    def holds_bfloat16(self) -> bool:
        """Whether it computes in bfloat16 even on a processor that must emulate it, since it holds weights in it."""
        return False

    def check(self, run: RunConfig) -> None:
        """Raise ValueError where the objective does not go with the rest of the recipe."""
        for number, stage in enumerate(run.stages if self.lengths is not None else ()):
            for length in sorted(set(stage.frames) - set(self.lengths or ())):
                raise ValueError(
                    f"stages.{number}.frames has num_frames={length}, and the objective makes clips of "
                    f"{', '.join(map(str, self.lengths or ()))}: make these, too, or leave them out"
                )

    def sources(self) -> dict[str, Path]:
        """The folders whose weights it starts from as they are there, by the key that names them."""
        found = {key: getattr(self, key, None) for key in ("vae", "init")}
        return {key: place for key, place in found.items() if isinstance(place, Path)}

    def tiny(self) -> dict[str, Any]:
        """Settings, by key, that make a run-through last seconds."""
        return {"validation_clips": 2}


@dataclass(frozen=True)
class Setup:
    """What an objective is built for.

    Attributes:
        run: the recipe.
        folder: of the run.
        device: where it trains.
        models: where models come from.
        fill: makes what a cache lacks, and reads it; leaves it empty unless given.
        main_process_first: inside, the first process does its work before the others.
    """

    run: RunConfig
    folder: Path
    device: torch.device
    fill: Callable[[ShardCache[Any]], None] = ShardCache.load_blank
    models: ModelSource = LOADED
    main_process_first: Callable[[], AbstractContextManager[Any]] = nullcontext

    @property
    def plan(self) -> BatchPlan:
        """Says which stage a step belongs to."""
        return BatchPlan(self.run.stages, self.run.seed)


Data = TypeVar("Data", SpritesConfig, FootageConfig)
Build = TypeVar("Build", bound=Callable[..., tuple[Objective, Source]])

CONFIGS: Final[dict[str, type[ObjectiveConfig]]] = {}
"""The configuration of every objective, by `kind`."""
_BUILDS: Final[dict[type[ObjectiveConfig], Callable[..., tuple[Objective, Source]]]] = {}


def builds(config: type[ObjectiveConfig]) -> Callable[[Build], Build]:
    """Register what builds the objective, and the source of its batches, of a configuration."""

    def register(build: Build) -> Build:
        (kind,) = config.model_fields["kind"].annotation.__args__  # type: ignore[union-attr]
        CONFIGS[kind] = config
        _BUILDS[config] = build
        return build

    return register


def build(config: ObjectiveConfig, setup: Setup) -> tuple[Objective, Source]:
    """The objective of a recipe and the source of its batches.

    Raises:
        RequestError: the objective does not go with the data, or what it starts from does not serve.
        CheckpointError: a cache is of another model.
    """
    return _BUILDS[type(config)](config, setup)


def data_of(config: ObjectiveConfig, run: RunConfig, kind: type[Data]) -> Data:
    """The data of a recipe, if it is of the kind that an objective works on.

    Raises:
        RequestError: it is of another kind.
    """
    if isinstance(run.data, kind):
        return run.data
    raise RequestError(f"objective.kind={config.kind} and data.kind={run.data.kind} do not go together.")
