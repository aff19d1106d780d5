"""Sample sheets of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vgen.io.media.contact_sheet import contact_sheet


def save_sheet(path: Path, clips: Sequence[np.ndarray], labels: Sequence[str] | None = None) -> None:
    """Write clips as one PNG, a row each.

    Args:
        path: the file; its folder is made.
        clips: uint8 [F, H, W, 3] each.
        labels: one line above each clip.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(clips, labels=labels, scale=2).save(path)
