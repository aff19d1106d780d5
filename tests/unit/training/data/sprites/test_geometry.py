"""SpriteWorld's geometry: sizes, speeds, turns, visibility, and pixels that agree with the tracks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from vgen.training.data.sprites import SpriteClip, SpriteWorld
from vgen.training.data.sprites.keys import DIRECTIONS
from vgen.training.data.sprites.render import backdrop, cover
from vgen.training.data.sprites.shapes import EXTENTS, SHAPES

ClipsOf = Callable[..., list[SpriteClip]]


@pytest.fixture(scope="module")
def clips_of() -> ClipsOf:
    """Some clips of a motion, from tier 2."""
    world = SpriteWorld("train", 2)
    keys = [world.scene(index).key.objects[0] for index in range(1200)]

    def find(motion: str, count: int = 12) -> list[SpriteClip]:
        places = [index for index, key in enumerate(keys) if key.motion == motion][:count]
        assert len(places) == count
        return [world.sample(index) for index in places]

    return find


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("angle", [0.0, 0.7])
def test_coverage_has_the_area_and_the_centre_of_the_shape(shape: str, angle: float) -> None:
    centre, radius = np.array([[30.3, 33.7]], np.float32), np.array([9.4], np.float32)
    windows = cover(shape, centre, radius, np.array([angle], np.float32), 64, 64)
    coverage = windows.coverage[0]
    assert coverage.sum() == pytest.approx(EXTENTS[shape].area * 9.4**2, rel=0.01)
    across = (coverage.sum(axis=0) * (windows.columns[0] + 0.5)).sum() / coverage.sum()
    down = (coverage.sum(axis=1) * (windows.rows[0] + 0.5)).sum() / coverage.sum()
    assert (across, down) == pytest.approx((30.3, 33.7), abs=0.03)


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_are_as_wide_as_high(shape: str) -> None:
    windows = cover(
        shape, np.array([[32.0, 32.0]], np.float32), np.array([9.0], np.float32), np.zeros(1, np.float32), 64, 64
    )
    seen = windows.coverage[0] > 0.01
    rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
    assert np.ptp(columns) + 1 == 18 and np.ptp(rows) + 1 in (18, 19)
    if shape == "triangle":
        assert seen[rows[0]].sum() < 4 and seen[rows[-1]].sum() >= 17
    if shape == "cross":
        assert windows.coverage[0][rows[0]].sum() == pytest.approx(2 * 0.34 * 9.0, rel=0.02)


@pytest.mark.parametrize("kind", ["plain", "gradient", "striped", "checkered", "speckled"])
def test_backgrounds_stay_between_their_colours(kind: str) -> None:
    picture = backdrop(kind, "black", "gray" if kind == "gradient" else None, 48, 64, (0.3, 0.6, 0.5))
    assert picture.dtype == np.uint8 and picture.min() >= 10 and picture.max() <= 110
    assert (np.ptp(picture) > 15) == (kind != "plain")


@pytest.mark.parametrize("motion", ["left", "up", "down-right"])
def test_straight_ways_keep_their_direction_and_speed(clips_of: ClipsOf, motion: str) -> None:
    for clip in clips_of(motion):
        steps = np.diff(clip.tracks.centres[0], axis=0)
        pace = np.linalg.norm(steps, axis=1)
        low, high = {"slow": (0.9, 1.3), "quick": (1.8, 2.4)}[clip.key.objects[0].speed or ""]
        assert np.all((pace > low - 1e-3) & (pace < high + 1e-3)) and np.ptp(pace) < 1e-3
        np.testing.assert_allclose(steps / pace[:, None], np.tile(DIRECTIONS[motion], (16, 1)), atol=1e-3)


def test_still_is_exactly_still(clips_of: ClipsOf) -> None:
    for clip in clips_of("still"):
        assert np.array_equal(clip.frames, np.broadcast_to(clip.frames[0], clip.frames.shape))


@pytest.mark.parametrize(("motion", "ends"), [("grow", (0, -1)), ("shrink", (-1, 0))])
def test_areas_change_by_the_factor(clips_of: ClipsOf, motion: str, ends: tuple[int, int]) -> None:
    for clip in clips_of(motion, 20):
        radii = clip.tracks.radii[0]
        assert 2.5 <= (radii[ends[1]] / radii[ends[0]]) ** 2 <= 6.0
        counted = clip.masks.sum(axis=(1, 2))
        assert 2.0 <= counted[ends[1]] / counted[ends[0]] <= 8.0
        assert np.all(np.diff(radii) * (1 if motion == "grow" else -1) > 0)


@pytest.mark.parametrize("motion", ["bounce", "zigzag", "circle"])
@pytest.mark.parametrize("num_frames", [5, 9, 17, 65])
def test_winding_ways_turn_back_at_least_once(clips_of: ClipsOf, motion: str, num_frames: int) -> None:
    world = SpriteWorld("train", 2)
    for clip in clips_of(motion, 6):
        centres = world.sample(clip.index, num_frames).tracks.centres[0]
        turns = max(np.sum(np.diff(np.sign(np.diff(centres[:, axis]))) != 0) for axis in (0, 1))
        assert turns >= 1


def test_bounces_report_their_impacts(clips_of: ClipsOf) -> None:
    for clip in clips_of("bounce"):
        assert clip.events and all(event.kind == "impact" and 0 < event.time <= 16 for event in clip.events)
        heights = clip.tracks.centres[0, :, 1]
        nearest = round(clip.events[0].time)
        assert heights[nearest] >= heights[max(nearest - 3, 0)]
        assert clip.events[0].position[1] == pytest.approx(heights.max(), abs=1e-4)
    assert not clips_of("left", 1)[0].events


def test_things_appear_and_disappear(clips_of: ClipsOf) -> None:
    for motion, hidden, shown in (("appear", 0, -1), ("disappear", -1, 0)):
        for clip in clips_of(motion):
            assert not clip.masks[hidden].any() and clip.masks[shown].any()


def test_a_change_of_colour_ends_in_the_other_colour(clips_of: ClipsOf) -> None:
    for clip in clips_of("change"):
        key = clip.key.objects[0]
        assert key.colour_to not in (None, key.colour)
        assert np.array_equal(clip.masks[0], clip.masks[-1])
        assert not np.array_equal(clip.frames[0], clip.frames[-1])


def test_turning_is_seen_and_is_about_the_centre(clips_of: ClipsOf) -> None:
    for clip in clips_of("rotate"):
        assert clip.key.objects[0].shape != "circle"
        assert np.ptp(clip.tracks.centres[0], axis=0).max() == 0.0
        assert abs(np.rad2deg(np.ptp(clip.tracks.angles[0]))) >= 45.0


def test_two_phases_differ(clips_of: ClipsOf) -> None:
    for clip in clips_of("then", 30):
        first, second = clip.key.objects[0].phases
        steps = np.diff(clip.tracks.centres[0], axis=0)
        for phase, step in ((first, steps[2]), (second, steps[-2])):
            if phase in DIRECTIONS:
                assert float(step @ np.array(DIRECTIONS[phase])) >= 0.89
            else:
                assert np.abs(step).max() < 1e-4


def test_speed_words_are_dropped_where_the_way_does_not_fit() -> None:
    world = SpriteWorld("train", 1, num_frames=65)
    clips = [clip for clip in map(world.sample, range(40)) if clip.key.objects[0].motion in DIRECTIONS]
    for clip in clips:
        pace = np.linalg.norm(np.diff(clip.tracks.centres[0], axis=0), axis=1).mean()
        speed = clip.key.objects[0].speed
        assert speed is None or pace >= 0.9
        assert not ({"slowly", "quickly", "fast"} & set(clip.caption.split())) or speed is not None
    assert any(clip.key.objects[0].speed is None for clip in clips)


@pytest.mark.parametrize("motion", ["right", "grow", "rotate"])
def test_flow_carries_each_frame_onto_the_next(clips_of: ClipsOf, motion: str) -> None:
    clip = clips_of(motion, 1)[0]
    frame = 6
    rows, columns = np.nonzero(clip.masks[frame])
    moved = np.stack([columns, rows], axis=1) + 0.5 + clip.flow[frame][rows, columns]
    places = np.floor(moved).astype(int)
    assert clip.masks[frame + 1][places[:, 1], places[:, 0]].mean() > 0.9
    assert not clip.flow[frame][~clip.masks[frame]].any()
    expected = clip.tracks.centres[0, frame + 1]
    scale = (clip.tracks.radii[0, frame + 1] / clip.tracks.radii[0, frame]) ** 2
    assert np.abs(moved.mean(axis=0) - expected).max() < 0.4 * scale
