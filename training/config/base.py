"""What every part of a recipe is made of."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


class Strict(BaseModel):
    """Base of all parts of a recipe: an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())
