"""Draw which tokens are known in each task, from the code that lays them out: `python docs/scripts/make_tasks.py`."""

from __future__ import annotations

from pathlib import Path

import torch
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont

from vgen.diffusion.conditions import REFERENCE_FRAME, ConditionSet, KnownLatents, arrange, cell_strength
from vgen.types import LatentShape, Strides

ROOT = Path(__file__).resolve().parents[2]
STRIDES, SHAPE, RATE = Strides(4, 8, 8), LatentShape(5, 8, 8), 8.0
PATCH, CELL, GAP, MARGIN, LABEL = 2, 11, 12, 16, 210
GIVEN, HIDDEN, EDGE, INK = (52, 101, 164), (238, 238, 236), (186, 189, 182), (46, 52, 54)


def _piece(latent_frames: int = 1, frame_index: int = 0) -> KnownLatents:
    return KnownLatents(torch.ones(1, 1, latent_frames, SHAPE.height, SHAPE.width), frame_index)


def _region(inside: bool) -> KnownLatents:
    mask = torch.full((1, 1, 17, 64, 64), float(not inside))
    mask[..., 16:48, 16:48] = float(inside)
    return KnownLatents(torch.ones(1, 1, *SHAPE), strength=cell_strength(mask, STRIDES))


TASKS: dict[str, list[KnownLatents]] = {
    "generate": [],
    "animate": [_piece()],
    "predict, extend, story": [_piece(2)],
    "extend, story --reference": [_piece(2), _piece(1, REFERENCE_FRAME)],
    "predict --backward": [_piece(2, 12)],
    "interpolate, loop": [_piece(), _piece(1, 16)],
    "interpolate --keyframe": [_piece(), _piece(1, 6), _piece(1, 16)],
    "inpaint": [_region(inside=False)],
    "outpaint": [_region(inside=True)],
}
"""What each command gives, of a clip of 17 frames of 64 x 64."""


def main() -> None:
    """One row a task: tokens of the clip in the order of time, then the extra tokens under their own times."""
    side = SHAPE.height // PATCH * CELL
    height = side + 2 * GAP + 8
    picture = Image.new("RGB", (LABEL + 8 * (side + GAP) + MARGIN, len(TASKS) * height + 2 * MARGIN), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(13)
    for row, (name, pieces) in enumerate(TASKS.items()):
        top = MARGIN + row * height + 14
        draw.text((MARGIN, top + side // 2 - 8), name, INK, font)
        conditions = arrange(pieces, SHAPE, STRIDES, RATE, channels=1, batch=1, patch_size=PATCH)
        for place, (start, known) in enumerate(_frames(conditions)):
            left = LABEL + place * (side + GAP) + (2 * GAP if place >= SHAPE.frames else 0)
            draw.text((left, top - 17), f"{start:.2f} s", INK, font)
            for y in range(known.shape[0]):
                for x in range(known.shape[1]):
                    corner = (left + x * CELL, top + y * CELL)
                    colour = GIVEN if known[y, x] == 1 else HIDDEN
                    draw.rectangle((*corner, corner[0] + CELL - 1, corner[1] + CELL - 1), colour, EDGE)
    target = ROOT / "docs" / "images" / "tasks.png"
    picture.save(target, optimize=True)
    print(target)


def _frames(conditions: ConditionSet) -> list[tuple[float, torch.Tensor]]:
    """(start in seconds, strength [rows, columns]) of the clip's latent frames, then of the extra ones."""
    size = {"h": SHAPE.height // PATCH, "w": SHAPE.width // PATCH}
    extra = conditions.num_extra
    order = [*range(extra, conditions.strength.shape[1]), *range(extra)]
    strength = rearrange(conditions.strength[0, order], "(f h w) -> f h w", **size)
    times = rearrange(conditions.coordinates[0, 0, order], "(f h w) -> f (h w)", **size)[:, 0]
    return [(float(time), known) for time, known in zip(times, strength, strict=True)]


if __name__ == "__main__":
    main()
