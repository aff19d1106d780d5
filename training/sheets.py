"""Sample sheets: clips as rows, some of their frames as columns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def save_sheet(path: Path, clips: Sequence[np.ndarray], columns: int = 9, scale: int = 2, gap: int = 2) -> None:
    """Write clips as one PNG.

    Args:
        path: the file; its folder is made.
        clips: uint8 [F, H, W, 3] each, of one size; shorter ones leave their row unfinished.
        columns: most frames shown of a clip, evenly spaced.
        scale: enlargement of a pixel.
        gap: pixels between frames.
    """
    rows = []
    for clip in clips:
        shown = np.unique(np.linspace(0, len(clip) - 1, min(columns, len(clip))).round().astype(int))
        frames = [np.pad(clip[index], ((0, gap), (0, gap), (0, 0)), constant_values=255) for index in shown]
        rows.append(np.concatenate(frames, axis=1))
    width = max(row.shape[1] for row in rows)
    sheet = np.concatenate(
        [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    )
    image = Image.fromarray(sheet).resize((sheet.shape[1] * scale, sheet.shape[0] * scale), Image.Resampling.NEAREST)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
