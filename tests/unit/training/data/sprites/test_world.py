"""SpriteWorld: frozen splits, what is withheld, and clips as pure functions of their index."""

from __future__ import annotations

import json
import zlib

import numpy as np
import pytest

from vgen.errors import RequestError, ShapeError
from vgen.training.data.sprites import ObjectKey, SpriteClip, SpriteWorld, answer_prompts, is_withheld
from vgen.training.data.sprites.keys import MOTIONS
from vgen.training.data.sprites.palette import BACKGROUNDS, COLOURS, MIN_CONTRAST, colour_distance
from vgen.training.data.sprites.shapes import SHAPES
from vgen.training.judge.judge import judge

# The frozen splits: (split, tier, index) -> checksum of the answer key, mean red, green and blue, last centre.
FROZEN: dict[tuple[str, int, int], tuple[int, tuple[float, float, float], tuple[float, float]]] = {
    ("train", 1, 0): (4020052001, (20.517, 25.948, 82.586), (39.702, 37.397)),
    ("train", 1, 1234): (2926959873, (87.393, 66.255, 36.302), (33.329, 49.503)),
    ("train", 2, 0): (376982829, (96.37, 91.278, 72.202), (42.632, 28.583)),
    ("train", 2, 77): (4173495332, (20.402, 20.402, 20.402), (46.491, 31.298)),
    ("train", 2, 49999): (336103340, (61.715, 67.474, 109.581), (17.783, 25.329)),
    ("validation", 1, 0): (3756429656, (107.504, 113.568, 113.924), (27.581, 44.824)),
    ("validation", 1, 1234): (1703426160, (26.198, 30.494, 79.155), (23.125, 39.223)),
    ("validation", 2, 0): (3773654019, (99.322, 74.37, 43.465), (28.272, 18.518)),
    ("validation", 2, 77): (1516703271, (28.243, 29.121, 78.208), (56.914, 12.649)),
    ("validation", 2, 1999): (928299456, (29.679, 36.928, 98.345), (24.223, 29.076)),
    ("test", 1, 0): (512587965, (89.008, 62.98, 38.674), (30.577, 29.947)),
    ("test", 1, 1234): (3872948698, (87.106, 61.447, 49.107), (46.172, 40.061)),
    ("test", 2, 0): (44815687, (29.313, 36.161, 96.03), (14.169, 32.539)),
    ("test", 2, 77): (782518380, (94.683, 65.589, 41.344), (36.21, 20.462)),
    ("test", 2, 1999): (1652269614, (111.915, 108.782, 108.782), (29.411, 14.958)),
    ("train", 3, 0): (1177066636, (117.922, 121.859, 118.484), (19.047, 48.621)),
    ("train", 3, 77): (2421735642, (34.025, 26.483, 37.043), (41.918, 42.608)),
    ("train", 3, 49999): (35214658, (36.766, 38.532, 94.291), (18.011, 11.836)),
    ("validation", 3, 0): (2331939102, (104.779, 100.854, 97.863), (49.372, 56.678)),
    ("validation", 3, 1999): (4133128109, (98.470, 71.478, 35.906), (44.864, 16.561)),
    ("test", 3, 0): (991093610, (48.752, 56.270, 115.917), (16.676, 25.963)),
    ("test", 3, 77): (754093229, (43.215, 36.037, 94.200), (24.561, 24.663)),
    ("test", 3, 1999): (497675509, (13.905, 21.485, 32.896), (27.771, 17.704)),
}


def _checksum(clip: SpriteClip) -> int:
    return zlib.crc32(json.dumps(clip.key.as_dict(), sort_keys=True).encode())


@pytest.mark.parametrize("place", FROZEN, ids=lambda place: "-".join(map(str, place)))
def test_splits_are_frozen(place: tuple[str, int, int]) -> None:
    split, tier, index = place
    clip = SpriteWorld(split, tier).sample(index)
    checksum, colour, centre = FROZEN[place]
    assert _checksum(clip) == checksum
    np.testing.assert_allclose(clip.frames.mean(axis=(0, 1, 2)), colour, atol=0.02)
    np.testing.assert_allclose(clip.tracks.centres[0, -1], centre, atol=0.01)


def test_frozen_places_cover_all_splits_and_tiers() -> None:
    assert {place[:2] for place in FROZEN} == {
        (split, tier) for split in ("train", "validation", "test") for tier in (1, 2, 3)
    }


def test_a_clip_is_a_pure_function_of_its_index() -> None:
    world = SpriteWorld("train", 2)
    first = world.sample(41)
    world.sample(7)
    again, other = SpriteWorld("train", 2).sample(41), world.sample(42)
    assert np.array_equal(first.frames, again.frames) and first.caption == again.caption and first.key == again.key
    assert not np.array_equal(first.frames, other.frames)


def test_splits_share_no_clip() -> None:
    digests = {
        split: {SpriteWorld(split, 1).scene(index).bodies[0].start for index in range(150)}
        for split in ("train", "validation", "test")
    }
    assert all(len(found) == 150 for found in digests.values())
    assert len(set.union(*digests.values())) == 450


@pytest.mark.parametrize("tier", [1, 2])
def test_withheld_triples_are_never_in_training(tier: int) -> None:
    world = SpriteWorld("train", tier)
    for index in range(700):
        item = world.scene(index).key.objects[0]
        for word in item.phases or (item.motion,):
            assert zlib.crc32(f"{item.colour}|{item.shape}|{word}".encode()) % 7 != 0


@pytest.mark.parametrize("tier", [1, 2, 3])
def test_test_clips_can_be_asked_for_by_triples(tier: int) -> None:
    for triples, wanted in (("seen", {False}), ("withheld", {True}), ("all", {False, True})):
        world = SpriteWorld("test", tier, triples=triples)
        assert {world.scene(index).key.withheld for index in range(100)} == wanted


def test_the_withheld_rule_is_the_checksum_of_the_triple() -> None:
    assert zlib.crc32(b"red|circle|left") % 7 != 0 and not is_withheld("red", "circle", "left")
    withheld = [
        (colour, shape, motion)
        for colour in COLOURS
        for shape in SHAPES
        for motion in MOTIONS
        if motion != "then" and is_withheld(colour, shape, motion)
    ]
    for colour, shape, motion in withheld:
        assert zlib.crc32(f"{colour}|{shape}|{motion}".encode()) % 7 == 0
    share = len(withheld) / (len(COLOURS) * len(SHAPES) * (len(MOTIONS) - 1))
    assert 0.1 < share < 0.19
    # A phase counts as much as a motion of its own, and a picture shows no motion.
    colour, shape, motion = next(triple for triple in withheld if triple[2] in ("left", "up"))
    assert is_withheld(colour, shape, "then", (motion, "still"))
    assert not is_withheld(colour, shape, None)


def test_every_motion_colour_and_shape_is_trained() -> None:
    keys = [SpriteWorld("train", 2).scene(index).key.objects[0] for index in range(900)]
    assert {key.motion for key in keys} == set(MOTIONS)
    assert {(key.colour, key.shape) for key in keys} == {(colour, shape) for colour in COLOURS for shape in SHAPES}


def test_tiers_take_turns() -> None:
    both, first, second = (SpriteWorld("test", tier) for tier in ((1, 2), 1, 2))
    assert both.sample(6).key == first.sample(3).key
    assert both.sample(7).key == second.sample(3).key


def test_a_tier_named_twice_repeats_no_clip() -> None:
    world, single = SpriteWorld("train", (1, 2, 2)), SpriteWorld("train", 2)
    found = [(clip.tier, clip.index) for clip in map(world.sample, range(6))]
    assert found == [(1, 0), (2, 0), (2, 1), (1, 1), (2, 2), (2, 3)]
    assert np.array_equal(world.sample(5).frames, single.sample(3).frames)


def test_emphasised_motions_come_more_often_and_no_clip_twice() -> None:
    plain, world = SpriteWorld("train", 2), SpriteWorld("train", 2, emphasis={"bounce": 4, "left": 0.5})
    share = {
        name: np.mean([one.scene(index).key.objects[0].motion == name for index in range(600)])
        for name, one in (("bounce", world), ("left", world))
    }
    usual = np.mean([plain.scene(index).key.objects[0].motion == "bounce" for index in range(600)])
    assert usual < 0.09 and share["bounce"] > 2.5 * usual
    assert 0 < share["left"] < 0.04
    clips = [world._locate(index) for index in range(600)]
    assert len(set(clips)) == 600
    clip = world.sample(5)
    assert np.array_equal(clip.frames, plain.sample(clip.index).frames)


def test_emphasis_leaves_a_tier_without_the_motion_alone() -> None:
    world, plain = SpriteWorld("train", (1, 2), emphasis={"bounce": 4}), SpriteWorld("train", 1)
    assert [world.scene(2 * index).key for index in range(5)] == [plain.scene(index).key for index in range(5)]


def test_a_turned_clip_goes_another_way_first() -> None:
    world = SpriteWorld("test", 1)
    for index in range(24):
        motion = world.scene(index).key.objects[0].motion
        frames = world.turn(index, 17, 8, "left", 1.5)
        if motion == "left":
            assert np.array_equal(frames, world.sample(index).frames)
            continue
        track = judge(frames).centres
        steps = np.diff(track, axis=0)
        assert (steps[:8, 0] <= 0.05).all() and np.abs(steps[:8, 1]).max() < 0.1
        # From the turn on it is the clip itself, as far as there is time for it.
        assert np.array_equal(frames[8:], world.sample(index).frames[:9])
        assert np.ptp(frames[:8].astype(int).sum(axis=(1, 2, 3))) < 2000  # whole inside all the time
        assert judge(frames[8:]).motion == motion


@pytest.mark.parametrize("tier", [2, 3])
def test_a_larger_canvas_shows_the_same_scene(tier: int) -> None:
    small, large = SpriteWorld("test", tier).sample(5), SpriteWorld("test", tier, height=128, width=128).sample(5)
    assert large.frames.shape == (17, 128, 128, 3) and small.key == large.key
    np.testing.assert_allclose(large.tracks.centres, 2.0 * small.tracks.centres, rtol=1e-5)
    halved = large.frames.reshape(17, 64, 2, 64, 2, 3).astype(np.float32).mean(axis=(2, 4))
    assert np.abs(halved - small.frames).mean() < 1.5


@pytest.mark.parametrize("num_frames", [1, 2, 5, 9, 33, 65])
def test_every_length_works(num_frames: int) -> None:
    world = SpriteWorld("train", (1, 2, 3), height=48, width=96)
    for index in range(12):
        clip = world.sample(index, num_frames)
        assert clip.frames.shape == (num_frames, 48, 96, 3) and clip.frames.dtype == np.uint8
        assert clip.masks.shape == (num_frames, 48, 96) and clip.masks.dtype == np.bool_
        assert clip.masks.any() and len(clip.object_masks) == len(clip.key.objects) == 1 + (clip.tier == 3)
        assert clip.flow.shape == (num_frames - 1, 48, 96, 2)
        assert (clip.key.objects[0].motion is None) == (num_frames == 1)


def test_a_picture_shows_the_colour_and_shape_of_its_clip() -> None:
    world = SpriteWorld("train", 2)
    for index in range(20):
        clip, picture = world.scene(index).key.objects[0], world.scene(index, 1).key.objects[0]
        assert (clip.colour, clip.shape, clip.size) == (picture.colour, picture.shape, picture.size)
        assert picture.speed is None and not picture.withheld


def test_objects_differ_from_all_that_lies_behind_them() -> None:
    for colour in COLOURS.values():
        for background in BACKGROUNDS.values():
            assert colour_distance(colour, background) >= MIN_CONTRAST


def test_answer_prompts_say_all_that_is_judged() -> None:
    found = answer_prompts("test", 1, 60, "withheld")
    assert len(found) == 60 and found == answer_prompts("test", 1, 60, "withheld")
    for prompt, key in found:
        assert key.withheld
        assert key.objects[0].colour in prompt.split() and key.objects[0].shape in prompt.split()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"tier": 4}, ["tier=4", "1, 2, 3"]),
        ({"tier": ()}, ["tier=()"]),
        ({"split": "trian"}, ["split='trian'", "validation"]),
        ({"triples": "withheld"}, ["train", "seen"]),
        ({"split": "test", "triples": "new"}, ["triples='new'", "withheld"]),
        ({"frame_rate": 0.0}, ["frame_rate=0.0"]),
        ({"emphasis": {"bouncing": 2}}, ["emphasis='bouncing'", "bounce"]),
        ({"emphasis": {"bounce": 0}}, ["bounce=0", "above 0"]),
    ],
)
def test_bad_requests_name_field_value_and_rule(arguments: dict[str, object], words: list[str]) -> None:
    with pytest.raises(RequestError) as caught:
        SpriteWorld(**arguments)  # type: ignore[arg-type]
    assert all(word in str(caught.value) for word in words)


def test_bad_sizes_and_indices_are_refused() -> None:
    with pytest.raises(ShapeError, match="height=8 must be at least 16"):
        SpriteWorld(height=8)
    with pytest.raises(ShapeError, match="num_frames=0"):
        SpriteWorld().sample(0, 0)
    with pytest.raises(RequestError, match="index=-1"):
        SpriteWorld().sample(-1)
    with pytest.raises(IndexError):
        SpriteWorld("test")[2000]


def test_keys_are_plain_in_json() -> None:
    key = SpriteWorld("test", 2).scene(0).key
    said = json.loads(json.dumps(key.as_dict()))
    assert said["withheld"] == key.withheld and said["objects"][0]["colour"] == key.objects[0].colour
    assert ObjectKey(**{**said["objects"][0], "phases": tuple(said["objects"][0]["phases"])}) == key.objects[0]
