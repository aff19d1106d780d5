"""Clips as one picture: a row of frames each, under its label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vgen.errors import RequestError, ShapeError, counted

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

PAPER = (255, 255, 255)
INK = (20, 20, 20)
GAP = 4


def contact_sheet(
    clips: Sequence[np.ndarray],
    labels: Sequence[str] | None = None,
    frames_per_row: int = 9,
    scale: int = 1,
    columns: int = 1,
) -> Image.Image:
    """Draw evenly spaced frames of every clip, the first and the last among them.

    Args:
        clips: each uint8 [F, H, W, 3]; sizes may differ.
        labels: one line above each clip; cut if longer than its row.
        frames_per_row: most frames shown of a clip.
        scale: whole factor by which pixels are enlarged, without smoothing.
        columns: clips side by side.
    Returns:
        mode "RGB".
    Raises:
        ShapeError: a clip is not uint8 [F, H, W, 3] with at least one frame, or there is none.
        RequestError: as many labels as clips are needed; the counts must be 1 or more.
    """
    from PIL import Image

    for field, value in (("frames_per_row", frames_per_row), ("scale", scale), ("columns", columns)):
        if value < 1:
            raise RequestError(f"{field}={value} must be 1 or more; use 1.")
    if not clips:
        raise ShapeError("a contact sheet needs at least one clip; got none.")
    if labels is not None and len(labels) != len(clips):
        raise RequestError(f"labels: {len(labels)} were given for {counted(len(clips), 'clip')}; give one for each.")
    strips = [
        _strip(clip, labels[index] if labels is not None else None, frames_per_row, scale)
        for index, clip in enumerate(clips)
    ]
    rows = [strips[start : start + columns] for start in range(0, len(strips), columns)]
    column_width = max(strip.width for strip in strips)
    heights = [max(strip.height for strip in row) for row in rows]
    widest = max(len(row) for row in rows)
    sheet = Image.new("RGB", (widest * (column_width + GAP) + GAP, sum(heights) + GAP * (len(rows) + 1)), PAPER)
    top = GAP
    for row, height in zip(rows, heights, strict=True):
        for index, strip in enumerate(row):
            sheet.paste(strip, (GAP + index * (column_width + GAP), top))
        top += height + GAP
    return sheet


def _strip(clip: np.ndarray, label: str | None, frames_per_row: int, scale: int) -> Image.Image:
    """One clip: its label above its frames."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    if clip.ndim != 4 or clip.shape[-1] != 3 or clip.dtype != np.uint8 or 0 in clip.shape:
        raise ShapeError(f"a clip must be uint8 [frames, height, width, 3]; got {clip.dtype} {clip.shape}.")
    count = min(frames_per_row, len(clip))
    chosen = np.rint(np.linspace(0, len(clip) - 1, count)).astype(int)
    height, width = clip.shape[1] * scale, clip.shape[2] * scale
    font = ImageFont.load_default(12)
    text_height = 16 if label is not None else 0
    strip = Image.new("RGB", (count * (width + 2) - 2, text_height + height), PAPER)
    if label is not None:
        ImageDraw.Draw(strip).text((1, 0), " ".join(label.split()), fill=INK, font=font)
    for place, index in enumerate(chosen):
        frame = Image.fromarray(clip[index]).resize((width, height), Image.Resampling.NEAREST)
        strip.paste(frame, (place * (width + 2), text_height))
    return strip
