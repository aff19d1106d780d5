"""SpriteWorld for any split, tier, index, length and canvas."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from vgen.training.data.sprites import SpriteWorld
from vgen.training.data.sprites.shapes import EXTENTS

_PLACES = st.tuples(
    st.sampled_from(["train", "validation", "test"]),
    st.sampled_from([1, 2, 3]),
    st.integers(min_value=0, max_value=10**6),
)


@settings(max_examples=60, deadline=None)
@given(_PLACES, st.integers(1, 40), st.integers(24, 96), st.integers(24, 96))
def test_objects_stay_whole_inside_the_frame(
    place: tuple[str, int, int], num_frames: int, height: int, width: int
) -> None:
    split, tier, index = place
    clip = SpriteWorld(split, tier, num_frames, height, width).sample(index)
    for number, item in enumerate(clip.key.objects):
        extent = EXTENTS[item.shape]
        left, right, up, down = (extent.turned,) * 4 if item.motion == "rotate" else extent[:4]
        across, over = clip.tracks.centres[number, :, 0], clip.tracks.centres[number, :, 1]
        radii = clip.tracks.radii[number]
        assert np.all(across - left * radii >= 0.0) and np.all(across + right * radii <= width)
        assert np.all(over - up * radii >= 0.0) and np.all(over + down * radii <= height)


@settings(max_examples=30, deadline=None)
@given(_PLACES, st.sampled_from([1, 5, 17]))
def test_masks_have_the_area_of_the_shape(place: tuple[str, int, int], num_frames: int) -> None:
    split, tier, index = place
    clip = SpriteWorld(split, tier, num_frames).sample(index)
    for number, item in enumerate(clip.key.objects):
        if clip.key.relation == "behind" and number == 0:
            continue  # what is seen of it is another test's
        area = EXTENTS[item.shape].area * clip.tracks.radii[number] ** 2
        shown = clip.tracks.alphas[number] == 1.0
        np.testing.assert_allclose(clip.object_masks[number].sum(axis=(1, 2))[shown], area[shown], rtol=0.2, atol=8.0)


@settings(max_examples=30, deadline=None)
@given(_PLACES)
def test_captions_and_keys_do_not_depend_on_the_canvas(place: tuple[str, int, int]) -> None:
    split, tier, index = place
    first = SpriteWorld(split, tier).sample(index)
    second = SpriteWorld(split, tier, height=32, width=32, frame_rate=16.0).sample(index)
    assert first.caption == second.caption and first.key == second.key
