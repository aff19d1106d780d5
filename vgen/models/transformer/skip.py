"""Leaving parts of blocks out, for some samples of a batch: the worse model that guidance can steer away from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vgen.errors import RequestError
from vgen.types import SKIP_MODES, SkipLayers

BlockSkip = dict[str, Tensor | None]
"""What one block leaves out: by mode, the samples that do, bool [B, 1, 1]; None is all of them."""


def plan_skips(
    skip_layers: SkipLayers | Sequence[SkipLayers | None], num_blocks: int, batch: int, device: torch.device
) -> list[BlockSkip | None]:
    """What every block leaves out.

    Args:
        skip_layers: for all samples; or one entry (or None) for each of several equal parts of the batch.
        num_blocks: of the transformer.
        batch: B.
        device: of the samples.
    Returns:
        One entry per block, None where nothing is left out.
    Raises:
        RequestError: an unknown mode, a block that is not there, or parts that do not divide the batch.
    """
    parts = [skip_layers] if isinstance(skip_layers, SkipLayers) else list(skip_layers)
    if not parts or batch % len(parts):
        raise RequestError(f"skip_layers has {len(parts)} entries for {batch} samples: their number must divide it.")
    for part in parts:
        if part is not None:
            check_skip(part, num_blocks)
    rows = torch.arange(len(parts)).repeat_interleave(batch // len(parts))
    plan: list[BlockSkip | None] = []
    for block in range(num_blocks):
        skip: BlockSkip = {}
        for mode in SKIP_MODES:
            leaving = [part is not None and part.mode == mode and block in part.blocks for part in parts]
            if any(leaving):
                skip[mode] = None if all(leaving) else torch.tensor(leaving)[rows].view(-1, 1, 1).to(device)
        plan.append(skip or None)
    return plan


def check_skip(skip: SkipLayers, num_blocks: int) -> None:
    """Refuse what a transformer of `num_blocks` blocks cannot leave out.

    Raises:
        RequestError: an unknown mode, or a block that is not there.
    """
    if skip.mode not in SKIP_MODES:
        raise RequestError(f"skip_layers mode={skip.mode!r} is not known: use one of {', '.join(SKIP_MODES)}.")
    missing = [block for block in skip.blocks if not 0 <= block < num_blocks]
    if missing:
        raise RequestError(f"skip_layers blocks={missing} are not there: the transformer has 0 to {num_blocks - 1}.")


def replace_rows(result: Tensor, replacement: Tensor, rows: Tensor | None) -> Tensor:
    """`replacement` where `rows` (None: everywhere), `result` elsewhere; both [B, N, D]."""
    return replacement if rows is None else torch.where(rows, replacement, result)
