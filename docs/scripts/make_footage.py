"""Draw a folder of footage to follow docs/fine_tuning.md with: `python docs/scripts/make_footage.py footage`."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from vgen.io.media.video import write_video

SIDE, FRAMES, RATE, FINE = 128, 40, 16.0, 3


def _sky(top: tuple[int, int, int], bottom: tuple[int, int, int]) -> Image.Image:
    share = np.linspace(0, 1, SIDE * FINE)[:, None, None]
    rows = (1 - share) * np.array(top) + share * np.array(bottom)
    return Image.fromarray(np.broadcast_to(rows, (SIDE * FINE, SIDE * FINE, 3)).astype(np.uint8))


def _scaled(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(x * FINE, y * FINE) for x, y in points]


def boat(time: float) -> Image.Image:
    """A boat with a white sail crosses the sea at sunset; `time` goes from 0 to 1."""
    picture = _sky((60, 40, 110), (250, 150, 70))
    draw = ImageDraw.Draw(picture)
    draw.ellipse(_scaled([(84, 52), (116, 84)]), fill=(255, 220, 120))
    draw.rectangle(_scaled([(0, 80), (SIDE, SIDE)]), fill=(25, 60, 110))
    for wave in range(5):
        y = 86 + 9 * wave
        for x in range(-20, SIDE, 20):
            left = x + (20 * time * (wave % 2 * 2 - 1)) % 20
            draw.arc(_scaled([(left, y), (left + 20, y + 8)]), 200, 340, fill=(70, 120, 170), width=FINE)
    x, y = 8 + 70 * time, 80 + 2 * math.sin(8 * time)
    draw.polygon(_scaled([(x, y), (x + 36, y), (x + 28, y + 12), (x + 8, y + 12)]), fill=(120, 60, 40))
    draw.polygon(_scaled([(x + 18, y - 42), (x + 18, y - 2), (x + 34, y - 2)]), fill=(245, 240, 230))
    return picture


def balloon(time: float) -> Image.Image:
    """A striped balloon rises over green hills."""
    picture = _sky((90, 160, 230), (210, 235, 250))
    draw = ImageDraw.Draw(picture)
    draw.ellipse(_scaled([(-30, 92), (70, 180)]), fill=(70, 140, 60))
    draw.ellipse(_scaled([(40, 98), (160, 190)]), fill=(90, 165, 70))
    x, y = 44 + 12 * time, 70 - 58 * time
    draw.polygon(_scaled([(x + 8, y + 30), (x + 32, y + 30), (x + 24, y + 48), (x + 16, y + 48)]), fill=(200, 190, 150))
    for stripe, colour in enumerate(((200, 40, 50), (250, 210, 60), (200, 40, 50))):
        draw.ellipse(_scaled([(x + 7 * stripe, y), (x + 40 - 7 * stripe, y + 42)]), fill=colour)
    draw.rectangle(_scaled([(x + 16, y + 48), (x + 24, y + 56)]), fill=(110, 70, 40))
    return picture


def clip(scene: Callable[[float], Image.Image], frames: int = FRAMES, side: int = SIDE) -> np.ndarray:
    """uint8 [F, side, side, 3]."""
    times = np.linspace(0, 1, frames)
    return np.stack([np.asarray(scene(float(t)).resize((side, side), Image.Resampling.BOX)) for t in times])


def main(folder: Path) -> None:
    """Two clips to train on with their captions, and four files of the kind that every folder of footage has."""
    folder.mkdir(parents=True)
    write_video(folder / "boat.mp4", clip(boat), RATE)
    write_video(folder / "balloon.mp4", clip(balloon), RATE)
    write_video(folder / "copy_of_boat.mp4", clip(boat, side=64), RATE)
    write_video(folder / "lens_cap.mp4", np.full((FRAMES, SIDE, SIDE, 3), 6, np.uint8), RATE)
    write_video(folder / "tripod.mp4", np.repeat(clip(lambda t: balloon(0.9), 1), FRAMES, axis=0), RATE)
    (folder / "unfinished.mp4").write_bytes((folder / "boat.mp4").read_bytes()[:2000])
    (folder / "boat.txt").write_text("a boat with a white sail crosses the sea at sunset\n")
    (folder / "balloon.txt").write_text("a striped balloon rises over green hills\n")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "footage"))
