"""How a setting is declared: what there is to know of it besides its type, and groups of them as pydantic models."""

from __future__ import annotations

from dataclasses import dataclass
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, model_validator

FINE = "Fine points"
"""The panel of settings that say none."""

OF_MODEL = "the model's"

T = TypeVar("T")
if TYPE_CHECKING:
    Open = Annotated[T, "None until it is settled"]
else:
    Open = T | None
"""A setting that has a value once a request is resolved, or a pipeline's call filled in; before that None: left out."""


@dataclass(frozen=True)
class Knob:
    """What there is to know of a setting besides its type, its range and its description.

    Attributes:
        flag: its option; None: only Python and JSON have it.
        metavar: placeholder of the option's value; switches have none.
        panel: where the full help lists it.
        source: what holds where it is left out, in words.
        common: the short help lists it.
        settled: a resolved request always has it.
        last: what a pipeline's call takes where neither the caller nor a model nor a convention says it.
        tasks: the only tasks that have it; empty: all.
        needed: the tasks that cannot do without it.
        commands: the commands that have the option, where they are not those of `tasks`.
        repeated: the option may be given again, each time with one value.
        unplanned: why it does not go with `memory`.
        has_schedule: it has a schedule of its own, so a model's default is ignored where one is given by hand.
        learned: a model that is distilled from another has the other's in its weights.
    """

    flag: str | None = None
    metavar: str = ""
    panel: str = FINE
    source: str = "none"
    common: bool = False
    settled: bool = False
    last: Any = None
    tasks: tuple[str, ...] = ()
    needed: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    repeated: bool = False
    unplanned: str = ""
    has_schedule: bool = False
    learned: bool = False

    def __call__(self, schema: dict[str, Any]) -> None:
        """Complete the field's JSON schema; pydantic calls this."""
        kinds = [kind for kind in schema.pop("anyOf", ()) if kind.get("type") != "null"]
        if len(kinds) == 1:
            schema.update(kinds[0])
        elif kinds:
            schema["anyOf"] = kinds
        schema.pop("title", None)
        if schema.get("default") is None:
            schema.pop("default", None)
        schema |= {"left_out": self.source, "panel": self.panel} | ({"tasks": list(self.tasks)} if self.tasks else {})


def knob(help: str, flag: str | None = None, metavar: str = "", *, default: Any = None, **about: Any) -> Any:
    """Declare a setting: its description, its option and the rest of its `Knob`."""
    return Field(default=default, description=help, json_schema_extra=Knob(flag, metavar, **about))


def plain_type(kind: Any) -> str:
    """A field's type as people write it: "int | None", "float | list[float]"."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return plain_type(inner[0])
    if origin in (Union, UnionType):
        return " | ".join(dict.fromkeys(plain_type(one) for one in inner))
    if origin is Literal:
        return " | ".join(map(repr, inner))
    if origin in (tuple, list):
        return f"list[{plain_type(inner[0])}]"
    return "None" if kind is NoneType else getattr(kind, "__name__", str(kind)) if origin is None else str(kind)


class Declared(BaseModel):
    """A group of settings; None is the same as left out, unknown names are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _drop_none(cls, values: Any) -> Any:
        return (
            {name: value for name, value in values.items() if value is not None} if isinstance(values, dict) else values
        )

    @classmethod
    def knobs(cls) -> dict[str, Knob]:
        """The settings' knobs by name."""
        extras = {name: field.json_schema_extra for name, field in cls.model_fields.items()}
        return {name: extra for name, extra in extras.items() if isinstance(extra, Knob)}
