"""nn.ModuleList that tells a type checker what it holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Generic, Self, overload

    Held = TypeVar("Held", bound=nn.Module)

    class ModuleListOf(nn.ModuleList, Generic[Held]):
        """What nn.ModuleList does, with the class of its members."""

        def __init__(self, modules: Iterable[Held] | None = None) -> None: ...
        def __iter__(self) -> Iterator[Held]: ...
        @overload
        def __getitem__(self, idx: slice) -> Self: ...
        @overload
        def __getitem__(self, idx: int) -> Held: ...
        def __getitem__(self, idx: int | slice) -> Held | Self: ...
else:
    ModuleListOf = nn.ModuleList
