"""Training recipes: YAML with `key=value` overrides, checked before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import SerializeAsAny, ValidationError, field_validator, model_validator

from vgen.errors import RequestError
from vgen.training.config.files import apply_override, read_recipe
from vgen.training.config.run import RunConfig
from vgen.training.objectives.distill import build as _distill  # noqa: F401  # each registers its objectives
from vgen.training.objectives.flow import build as _flow  # noqa: F401
from vgen.training.objectives.preference import build as _preference  # noqa: F401
from vgen.training.objectives.registry import CONFIGS, ObjectiveConfig
from vgen.training.objectives.vae import build as _vae  # noqa: F401
from vgen.training.precision import computes_bfloat16


class Recipe(RunConfig):
    """A whole training run: see RunConfig, and the objective's own configuration."""

    objective: SerializeAsAny[ObjectiveConfig]

    @field_validator("objective", mode="before")
    @classmethod
    def _read_objective(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        kind = value.get("kind")
        if kind not in CONFIGS:
            raise ValueError(f"kind={kind!r} is not known: use {', '.join(sorted(CONFIGS))}")
        return CONFIGS[kind].model_validate(value)

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        if self.sharding == "fsdp" and self.optimizer.name == "muon":
            raise ValueError("sharding='fsdp' needs optimizer.name='adamw': muon works on whole matrices")
        self.objective.check(self)
        return self

    @property
    def autocasts(self) -> bool:
        """Whether steps compute in bfloat16: as `mixed_precision` says, but not where a processor would emulate it."""
        if self.mixed_precision == "no":
            return False
        return not self.on_cpu or computes_bfloat16("cpu") or self.objective.holds_bfloat16


def load_recipe(path: str | Path, overrides: list[str] | None = None, folder: Path | None = None) -> Recipe:
    """Read a recipe, with what it extends, and apply overrides.

    Args:
        path: a YAML file; see `vgen.training.config.files.read_recipe`.
        overrides: "key.subkey=value", values read as YAML; list items by number ("stages.0.steps=10").
        folder: of the run, in place of `output_dir`.

    Raises:
        RequestError: the file is missing or not YAML, a key is unknown, a value is not allowed.
    """
    content = read_recipe(Path(path))
    for override in overrides or []:
        apply_override(content, override)
    if folder is not None:
        content["output_dir"] = str(folder)
    return check_recipe(content, path)


def check_recipe(content: Mapping[str, Any], path: str | Path) -> Recipe:
    """A recipe from its content.

    Raises:
        RequestError: a key is unknown, or a value is not allowed; names `path`.
    """
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise RequestError(f"recipe={path}: {_explain(error)}") from None


def _explain(error: ValidationError) -> str:
    parts = []
    for problem in error.errors():
        loc = problem["loc"][:1] + problem["loc"][2:] if problem["loc"][:1] == ("data",) else problem["loc"]
        field = ".".join(str(part) for part in loc)  # without the kind of the data
        given = (
            ""
            if problem["type"] in ("missing", "extra_forbidden") or isinstance(problem["input"], dict)
            else f" (given: {problem['input']!r})"
        )
        message = "unknown key" if problem["type"] == "extra_forbidden" else problem["msg"]
        parts.append(f"{field or 'recipe'}: {message}{given}")
    return "; ".join(parts)
