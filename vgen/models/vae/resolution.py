"""Changes of resolution inside the VAE: their names and strides, and the checks of a config that names them."""

from __future__ import annotations

from collections.abc import Sequence

from einops import rearrange
from torch import Tensor

from vgen.errors import RequestError

STRIDES = {"spatiotemporal": (2, 2, 2), "temporal": (2, 1, 1), "spatial": (1, 2, 2)}
"""(frames, rows, columns) that a change of resolution joins or splits, by its name in the config."""


def resolution_stride(field: str, kind: str) -> tuple[int, int, int]:
    """The stride that `kind` names; refuses an unknown one, naming the config `field`."""
    if kind not in STRIDES:
        raise RequestError(f"{field}: {kind!r} is not known: use one of {', '.join(STRIDES)}.")
    return STRIDES[kind]


def check_lengths(needed: int, owner: str, **fields: Sequence[object]) -> None:
    """Refuse config tuples that have fewer than the `needed` entries that `owner` asks for.

    Surplus entries are let through: public configs leave defaults of another length beside what they set.
    """
    for field, values in fields.items():
        if len(values) < needed:
            raise RequestError(f"{field} has {len(values)} entries, but {owner} asks for {needed}; give {needed}.")


def space_to_depth(hidden_states: Tensor, stride: tuple[int, int, int]) -> Tensor:
    """[B, C, F * a, H * b, W * c] -> [B, C * a * b * c, F, H, W]."""
    a, b, c = stride
    return rearrange(hidden_states, "n d (f a) (h b) (w c) -> n (d a b c) f h w", a=a, b=b, c=c)
