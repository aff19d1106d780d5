"""What stays the same over the steps of a loop, computed once: remembered by what it was computed from.

A result is found again only if it was made from the very same memory, unchanged since: every tensor that went in is
held on to (so its address cannot be given to another) together with torch's counter of in-place changes. That counter
does not see writes to `weight.data` (peft's merging is one): `weight_digest` does, and whoever holds a memo over a time
in which others may act compares it. New text, other weights or another LoRA therefore never meet an old result. Nothing
is remembered while gradients are wanted.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

_KEPT: Final = 4
"""Results remembered under one name: more than the branches of a guidance that take turns."""


class Memo:
    """Results of one loop by name and source."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, OrderedDict[Hashable, tuple[Any, Any]]] = {}
        self._digest: Hashable = None

    def forget_if_changed(self, digest: Hashable) -> None:
        """Drop everything if the weights have another digest than the last time, see `weight_digest`."""
        if self._digest is not None and digest != self._digest:
            self._kept.clear()
        self._digest = digest

    def get(self, name: Hashable, sources: Sequence[Tensor | nn.Module | None], make: Callable[[], Any]) -> Any:
        """The result of `make`, remembered.

        Args:
            name: what it is.
            sources: everything that `make` reads: tensors, and modules for their weights.
            make: computes it.
        """
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return make()
        try:
            key = tuple(_fingerprint(source) for source in sources)
        except RuntimeError:  # tensors of inference mode do not count their changes
            return make()
        kept = self._kept.setdefault(name, OrderedDict())
        if key in kept:
            kept.move_to_end(key)
            return kept[key][1]
        value = make()
        kept[key] = (tuple(sources), value)
        while len(kept) > _KEPT:
            kept.popitem(last=False)
        return value


def _fingerprint(source: Tensor | nn.Module | None) -> Hashable:
    """What distinguishes a source from others, and from itself after a change."""
    if source is None:
        return None
    if isinstance(source, Tensor):
        return (source.data_ptr(), source.shape, source.stride(), source.dtype, source.device, source._version)
    weights = tuple((weight.data_ptr(), weight._version, weight.dtype) for weight in source.parameters())
    adapters = tuple(
        repr([getattr(layer, field, None) for field in ("active_adapters", "scaling", "merged_adapters")])
        + str(getattr(layer, "disable_adapters", None))
        for layer in source.modules()
        if hasattr(layer, "scaling")
    )
    return (id(source), weights, adapters)


_BITS: Final = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_PIECE: Final = 257
"""Numbers of 8 bytes that are summed as one, of large weights: all would be multiplied otherwise, which is slower."""
_SMALL: Final = 1 << 16


@torch.no_grad()
def weight_digest(weights: Iterable[Tensor]) -> Hashable:
    """Another value for weights whose content has changed, however it was written.

    A sum over the bits of each weight, multiplied by their place (of large weights by that of every 2 KB): it reads
    each weight once (0.02 s per 100 MB on one core), and the host waits for the device once. Weights that are not plain
    memory count by their address alone.

    Args:
        weights: of any shape and device.
    """
    known: list[Hashable] = []
    sums: dict[torch.device, list[Tensor]] = {}
    for weight in weights:
        here = weight.device.type != "meta"
        known.append((weight.data_ptr() if here else None, weight.shape, weight.dtype))
        if here and type(weight) in (Tensor, nn.Parameter) and weight.numel() and not weight.is_complex():
            bits = _as_integers(weight.detach().contiguous().reshape(-1))
            sums.setdefault(weight.device, []).append(_numbered_sum(bits))
    return (*known, *(tuple(torch.stack(tensors).tolist()) for tensors in sums.values()))


def _as_integers(values: Tensor) -> Tensor:
    """The bits of a vector as int64, 8 bytes each where they divide by that, else one an element."""
    size = values.element_size()
    if values.numel() * size % 8 or values.storage_offset() * size % 8:
        return values.view(_BITS[size]).to(torch.int64)
    return values.view(torch.int64)


def _numbered_sum(values: Tensor) -> Tensor:
    """Sum of an int64 vector, each entry (of a long one each piece) times its place from 1; it may overflow."""
    rest = torch.zeros((), dtype=torch.int64, device=values.device)
    if len(values) > _SMALL:
        whole = len(values) // _PIECE * _PIECE
        values, rest = values[:whole].view(-1, _PIECE).sum(dim=1), values[whole:].sum()
    return (values * torch.arange(1, len(values) + 1, device=values.device)).sum() + rest


class TextRows(NamedTuple):
    """Samples of a batch, next to each other, that keep equally many tokens of their text."""

    start: int
    stop: int
    length: int


def text_rows(mask: Tensor) -> tuple[TextRows, ...] | None:
    """The samples of a batch grouped by how many tokens they keep.

    Args:
        mask: bool [B, L], True = keep.
    Returns:
        None where a mask has holes, so that cutting the end off is not enough.
    """
    lengths = mask.sum(dim=1)
    ahead = torch.arange(mask.shape[1], device=mask.device)[None] < lengths[:, None]
    if not bool((ahead == mask).all()):
        return None
    rows: list[TextRows] = []
    for index, length in enumerate(lengths.tolist()):
        if rows and rows[-1].length == length:
            rows[-1] = rows[-1]._replace(stop=index + 1)
        else:
            rows.append(TextRows(index, index + 1, length))
    return tuple(rows)
