"""What the judge sees: the background, an object in front of it, and its outline in every frame.

Everything comes from the pixels of one clip. Lengths are in units of 1/64 of the short side, areas in square units.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vgen.training.data.sprites.palette import BACKGROUNDS, COLOURS, rgb_to_lab

Floats = NDArray[np.float32]
Flags = NDArray[np.bool_]

# Frozen thresholds. They decide every score: a change re-scores every earlier model.
RING_UNITS: Final = 1.5  # width of the border that shows the background
FOREGROUND_DISTANCE: Final = (20.0, 34.0)  # Lab; the lower one unless the border itself varies more
BORDER_SPREAD: Final = 1.3  # times the 98th percentile of the border's own distances
MIN_AREA: Final = 8.0  # square units; below it nothing is seen
CORE_ALPHA: Final = 0.8  # pixels that are surely inside the object
SOLID_SHARE: Final = 0.75  # of the strongest contrast: frames that show the colour unmixed
SECOND_AREA: Final = 0.35  # of the largest component: from there on a second one counts as another object


@dataclass
class Observation:
    """One thing in front of the background, frame by frame.

    Attributes:
        unit: pixels per unit of length.
        alphas: [F, H, W] float32, how far each pixel is from the background to the object, 0..1, zero outside it.
        visible: [F] bool.
        areas: [F] square units; centres: [F, 2] units as (x, y); both NaN where nothing is visible.
        solid: [F] bool, visible in its full colour.
        alone: [F] bool, no second object of comparable area.
        votes: [F, colours] share of the object's core that is nearest to each colour of the palette.
        background: nearest plain background colour.
        flicker: mean absolute change, 0..255, from frame to frame where no frame shows the object.
    """

    unit: float
    alphas: Floats
    visible: Flags
    areas: Floats
    centres: Floats
    solid: Flags
    alone: Flags
    votes: Floats
    background: str
    flicker: float

    @cached_property
    def times(self) -> NDArray[np.int64]:
        """The frames that show the object."""
        return np.flatnonzero(self.visible)


class Foreground(NamedTuple):
    """A clip against its background.

    Attributes:
        frames: uint8 [F, H, W, 3]; smooth: the same, slightly blurred.
        unit: pixels per unit of length.
        behind: uint8 [H, W, 3], the background; background: its nearest plain colour.
        distance: [F, H, W] Lab distance from the background; seen: [F, H, W] where something is in front of it.
        flicker: see `Observation`.
    """

    frames: NDArray[np.uint8]
    smooth: NDArray[np.uint8]
    unit: float
    behind: NDArray[np.uint8]
    background: str
    distance: Floats
    seen: Flags
    flicker: float


def find_foreground(frames: NDArray[np.uint8]) -> Foreground:
    """Separate what is in front of the background of frames, uint8 [F, H, W, 3], from it."""
    _, height, width, _ = frames.shape
    unit = min(height, width) / 64.0
    smooth = _smoothed(frames)
    thickness = max(2, round(RING_UNITS * unit))
    ring = np.ones((height, width), np.bool_)
    ring[thickness:-thickness, thickness:-thickness] = False
    behind = _background(smooth, ring)
    distance = np.linalg.norm(rgb_to_lab(smooth) - rgb_to_lab(behind), axis=-1)
    spread = BORDER_SPREAD * float(np.percentile(distance[:, ring], 98))
    seen = distance > np.clip(spread, *FOREGROUND_DISTANCE)
    return Foreground(
        frames, smooth, unit, behind, _background_name(behind[ring]), distance, seen, _flicker(frames, seen)
    )


def observe(frames: NDArray[np.uint8]) -> Observation:
    """Find the largest object in every frame of uint8 [F, H, W, 3]."""
    front = find_foreground(frames)
    return measure(front, *largest_parts(front.seen, components(front.seen), front.unit))


def largest_parts(seen: Flags, labels: NDArray[np.int64], unit: float) -> tuple[Flags, Flags]:
    """The largest of the labelled parts of every frame.

    Args:
        seen, labels: [F, H, W], the pixels that count, and the part of each.
        unit: pixels per unit of length.
    Returns:
        [F, H, W], its pixels, none where it is too small; [F], whether no other part is nearly as large.
    """
    parts, alone = np.zeros_like(seen), np.ones(len(seen), np.bool_)
    for frame in np.flatnonzero(seen.any(axis=(1, 2))):
        counts = np.bincount(labels[frame][seen[frame]])
        largest = int(counts.argmax())
        others = np.delete(counts, largest)
        alone[frame] = not len(others) or others.max() < SECOND_AREA * counts[largest]
        if counts[largest] >= MIN_AREA * unit**2:
            parts[frame] = seen[frame] & (labels[frame] == largest)
    return parts, alone


def measure(front: Foreground, parts: Flags, alone: Flags, others: Flags | None = None) -> Observation:
    """Outline, place and colour of one object in every frame.

    Args:
        front: the clip.
        parts: [F, H, W], the pixels that are taken for the object; none where it is not seen.
        alone: [F], see `Observation`.
        others: [F, H, W], pixels that belong to something else.
    """
    frames, unit, distance = front.frames, front.unit, front.distance
    num_frames = len(frames)
    alphas = np.zeros(parts.shape, dtype=np.float32)
    areas, contrasts = np.full(num_frames, np.nan, np.float32), np.zeros(num_frames, np.float32)
    centres = np.full((num_frames, 2), np.nan, np.float32)
    votes = np.zeros((num_frames, len(COLOURS)), np.float32)
    visible = np.asarray(parts.any(axis=(1, 2)))
    away = frames.astype(np.float32) - front.behind
    for frame in np.flatnonzero(visible):
        component = parts[frame]
        strong = component & (distance[frame] >= 0.7 * np.percentile(distance[frame][component], 90))
        step = np.median(away[frame][strong], axis=0)
        alpha = np.clip(away[frame] @ step / float(step @ step), 0.0, 1.0) * widened(component)
        if others is not None:
            alpha *= ~others[frame]
        alphas[frame] = alpha
        areas[frame] = alpha.sum() / unit**2
        centres[frame] = _centre(alpha) / unit
        contrasts[frame] = np.median(distance[frame][strong])
        core = component & (alpha >= CORE_ALPHA)
        votes[frame] = _vote(frames[frame][core if core.any() else component])
    # Only what comes or goes is seen half faded; a colour change has its own contrast at either end.
    solid = visible if visible[0] and visible[-1] else visible & (contrasts >= SOLID_SHARE * contrasts.max())
    return Observation(unit, alphas, visible, areas, centres, solid, alone, votes, front.background, front.flicker)


def _smoothed(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A 3 x 3 binomial blur: what a single noisy pixel says is not evidence."""
    padded = np.pad(frames.astype(np.float32), ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    rows = padded[:, :-2] + 2.0 * padded[:, 1:-1] + padded[:, 2:]
    both = rows[:, :, :-2] + 2.0 * rows[:, :, 1:-1] + rows[:, :, 2:]
    return (both / 16.0 + 0.5).astype(np.uint8)


def _background(frames: NDArray[np.uint8], ring: Flags) -> NDArray[np.uint8]:
    """The background: the plane through the border's medians over time, [H, W, 3]."""
    height, width = ring.shape
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float64)
    places = np.stack([np.ones_like(rows), rows / height - 0.5, columns / width - 0.5], axis=-1)
    colours = np.median(frames[:, ring], axis=0)
    error = np.abs(colours - np.median(colours, axis=0)).sum(axis=1)
    for _ in range(3):
        kept = error <= 3.0 * np.median(error) + 6.0
        plane = np.linalg.lstsq(places[ring][kept], colours[kept], rcond=None)[0]
        error = np.abs(colours - places[ring] @ plane).sum(axis=1)
    return np.clip(places @ plane + 0.5, 0.0, 255.0).astype(np.uint8)


def components(seen: Flags) -> NDArray[np.int64]:
    """Label the connected parts (4 neighbours) of every frame; each label is a pixel's place in its frame."""
    num_frames, height, width = seen.shape
    size = height * width
    labels = np.where(seen, np.arange(size).reshape(1, height, width), -1)
    base = (np.arange(num_frames) * size)[:, None]
    while True:
        spread = labels.copy()
        spread[:, 1:] = np.maximum(spread[:, 1:], labels[:, :-1])
        spread[:, :-1] = np.maximum(spread[:, :-1], labels[:, 1:])
        spread[:, :, 1:] = np.maximum(spread[:, :, 1:], labels[:, :, :-1])
        spread[:, :, :-1] = np.maximum(spread[:, :, :-1], labels[:, :, 1:])
        flat = np.where(seen, spread, -1).reshape(num_frames, size)
        for _ in range(2):
            # Jump to the label of one's label: as many steps at once as were already made.
            flat = np.where(flat >= 0, flat.ravel()[np.maximum(flat, 0) + base], -1)
        spread = flat.reshape(seen.shape)
        if np.array_equal(spread, labels):
            return labels
        labels = spread


def widened(component: Flags, pixels: int = 2) -> Flags:
    """A component [..., H, W] and some pixels around it: two of them are its soft edge."""
    for _ in range(pixels):
        wide = component.copy()
        wide[..., 1:, :] |= component[..., :-1, :]
        wide[..., :-1, :] |= component[..., 1:, :]
        wide[..., 1:] |= component[..., :-1]
        wide[..., :-1] |= component[..., 1:]
        component = wide
    return component


def _centre(alpha: Floats) -> Floats:
    weight = alpha.sum()
    across = (alpha.sum(axis=0) * (np.arange(alpha.shape[1]) + 0.5)).sum() / weight
    down = (alpha.sum(axis=1) * (np.arange(alpha.shape[0]) + 0.5)).sum() / weight
    return np.array([across, down], np.float32)


_PALETTE_LAB: Final = rgb_to_lab(np.array(list(COLOURS.values()), dtype=np.uint8))
_BACKGROUND_LAB: Final = rgb_to_lab(np.array(list(BACKGROUNDS.values()), dtype=np.uint8))


def nearest_colours(pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Places in the palette of the colours nearest to pixels [n, 3]."""
    return np.linalg.norm(rgb_to_lab(pixels)[:, None] - _PALETTE_LAB, axis=-1).argmin(axis=1)


def _vote(pixels: NDArray[np.uint8]) -> Floats:
    nearest = nearest_colours(pixels)
    return (np.bincount(nearest, minlength=len(COLOURS)) / len(pixels)).astype(np.float32)


def _background_name(border: NDArray[np.uint8]) -> str:
    middle = rgb_to_lab(np.median(border, axis=0).astype(np.uint8))
    return list(BACKGROUNDS)[int(np.linalg.norm(_BACKGROUND_LAB - middle, axis=-1).argmin())]


def _flicker(frames: NDArray[np.uint8], seen: Flags) -> float:
    empty = ~widened(np.asarray(seen.any(axis=0)))
    if len(frames) < 2 or not empty.any():
        return 0.0
    return float(np.abs(np.diff(frames[:, empty].astype(np.float32), axis=0)).mean())
