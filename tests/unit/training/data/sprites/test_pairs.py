"""Tier 3: two objects, what they are to each other, how that is painted, and how it is said."""

from __future__ import annotations

import re
import zlib
from functools import cache

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from vgen.training.data.sprites import AnswerKey, SpriteClip, SpriteWorld, answer_prompts, caption, vocabulary_corpus
from vgen.training.data.sprites.captions import FORMS, SEEN_FORMS, TEST_FORMS
from vgen.training.data.sprites.keys import DIRECTIONS, RELATIONS
from vgen.training.data.sprites.pairs import GAP, PAIR_CONTRAST
from vgen.training.data.sprites.palette import COLOURS, colour_distance
from vgen.training.data.sprites.shapes import EXTENTS, SHAPES, far_edge
from vgen.training.data.tokenizer import sprite_tokenizer


@cache
def _clips(relation: str, count: int = 12) -> tuple[SpriteClip, ...]:
    world = SpriteWorld("train", 3)
    places = [index for index in range(300) if world.scene(index).key.relation == relation][:count]
    assert len(places) == count
    return tuple(world.sample(index) for index in places)


def _ends(clip: SpriteClip, number: int, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """How far an object reaches along an axis, both ways, in every frame."""
    item, extent = clip.key.objects[number], EXTENTS[clip.key.objects[number].shape]
    sides = (extent.turned,) * 4 if item.motion == "rotate" else extent[:4]
    centre, radius = clip.tracks.centres[number, :, axis], clip.tracks.radii[number]
    return centre - sides[2 * axis] * radius, centre + sides[2 * axis + 1] * radius


def test_every_relation_is_shown_and_colours_can_be_told_apart() -> None:
    keys = [SpriteWorld("train", 3).scene(index).key for index in range(200)]
    assert {key.relation for key in keys} == set(RELATIONS)
    for key in keys:
        one, other = (COLOURS[item.colour] for item in key.objects)
        assert colour_distance(one, other) >= PAIR_CONTRAST


@pytest.mark.parametrize("relation", ["left of", "above"])
def test_one_object_stays_before_the_other(relation: str) -> None:
    axis = RELATIONS.index(relation)
    for clip in _clips(relation, 20):
        assert np.all(_ends(clip, 1, axis)[0] - _ends(clip, 0, axis)[1] >= GAP - 1e-3)
        assert np.array_equal(clip.object_masks.any(axis=0), clip.masks) and not clip.object_masks.all(axis=0).any()


@pytest.mark.parametrize("relation", ["left of", "above"])
def test_objects_apart_move_as_single_ones_do(relation: str) -> None:
    for clip in _clips(relation, 20):
        for item, track in zip(clip.key.objects, clip.tracks.centres, strict=True):
            steps = np.diff(track, axis=0)
            pace = np.linalg.norm(steps, axis=1)
            if item.motion in DIRECTIONS:
                np.testing.assert_allclose(steps / pace[:, None], np.tile(DIRECTIONS[item.motion], (16, 1)), atol=2e-3)
                low, high = {"slow": (0.9, 1.3), "quick": (1.8, 2.4), None: (0.3, 2.4)}[item.speed]
                assert low - 1e-3 < pace.min() and pace.max() < high + 1e-3
            else:
                assert pace.max() == 0.0


def test_a_collision_is_elastic_and_between_equal_masses() -> None:
    for clip in _clips("collides with", 16):
        (event,) = clip.events
        meeting = int(event.time)
        assert event.kind == "collision" and event.time == meeting and 0.35 <= meeting / 16 <= 0.65
        steps = np.diff(clip.tracks.centres, axis=1)
        before, after = steps[:, meeting - 1], steps[:, meeting]
        np.testing.assert_allclose(steps[:, :meeting], np.tile(before[:, None], (1, meeting, 1)), atol=1e-3)
        np.testing.assert_allclose(after[::-1], before, atol=1e-3)  # equal masses swap velocities
        way = np.array(DIRECTIONS[clip.key.objects[0].phases[0]])
        assert before[0] @ way > 0.5 and before[1] @ way <= 1e-3
        assert clip.tracks.radii[0, 0] == clip.tracks.radii[1, 0]


def test_objects_that_collide_touch_and_no_more() -> None:
    for clip in _clips("collides with", 16):
        (event,) = clip.events
        one, other = clip.object_masks[:, int(event.time)]
        beside = np.zeros_like(one)
        for axis, step in ((0, 1), (0, -1), (1, 1), (1, -1)):
            beside |= np.roll(one, step, axis)
        touching = np.argwhere(np.logical_or(beside, np.roll(beside, 1, 0) | np.roll(beside, 1, 1)) & other) + 0.5
        assert len(touching) and np.abs(touching[:, ::-1] - event.position).max(axis=1).min() < 2.0
        # Nothing of either is lost under the other, all the time.
        for number, item in enumerate(clip.key.objects):
            area = EXTENTS[item.shape].area * clip.tracks.radii[number] ** 2
            np.testing.assert_allclose(clip.object_masks[number].sum(axis=(1, 2)), area, rtol=0.12, atol=6.0)


def test_far_edges_are_those_of_the_outline() -> None:
    middle = np.zeros(1)
    for shape in SHAPES:
        extent = EXTENTS[shape]
        lanes = np.linspace(-1.4, 1.4, 561)
        for way, reach in (("left", extent.left), ("right", extent.right), ("up", extent.up), ("down", extent.down)):
            assert far_edge(shape, DIRECTIONS[way], lanes).max() == pytest.approx(reach, abs=0.01)
    assert far_edge("triangle", (1.0, 0.0), middle) == pytest.approx(2 / 3)
    assert far_edge("triangle", (1.0, 0.0), np.array([0.6])) == pytest.approx(0.9667, abs=1e-3)
    assert far_edge("cross", (0.0, 1.0), np.array([0.5])) == pytest.approx(0.34)
    assert np.isinf(far_edge("circle", (1.0, 0.0), np.array([1.1]))).all()


def test_one_passes_behind_the_other() -> None:
    for clip in _clips("behind"):
        shown = clip.object_masks.sum(axis=(2, 3))
        area = EXTENTS[clip.key.objects[0].shape].area * clip.tracks.radii[0] ** 2
        assert shown[0, 0] > 0.85 * area[0] and shown[0, -1] > 0.85 * area[0], "seen whole at either end"
        assert shown[0].min() < 0.7 * shown[0, 0] and shown[1].min() > 0.75 * shown[1].max()
        axis = 0 if clip.key.objects[0].motion in ("left", "right") else 1
        order = np.sign(np.diff(clip.tracks.centres[:, :, axis], axis=0)[0])
        assert order[0] == -order[-1], "from one side to the other"
        assert not clip.events


def test_flow_is_that_of_what_is_seen() -> None:
    for clip in (*_clips("behind", 4), *_clips("collides with", 4)):
        steps = np.diff(clip.tracks.centres, axis=1)
        for frame in (0, 7, 15):
            assert not clip.flow[frame][~clip.masks[frame]].any()
            for number in (0, 1):
                seen = clip.flow[frame][clip.object_masks[number, frame]]
                np.testing.assert_allclose(seen, np.broadcast_to(steps[number, frame], seen.shape), atol=1e-4)


def test_either_object_may_be_the_withheld_one_and_neither_is_in_training() -> None:
    train, withheld = SpriteWorld("train", 3), SpriteWorld("test", 3, triples="withheld")
    for index in range(400):
        for item in train.scene(index).key.objects:
            for word in item.phases or (item.motion,):
                assert zlib.crc32(f"{item.colour}|{item.shape}|{word}".encode()) % 7 != 0
    found = [tuple(item.withheld for item in withheld.scene(index).key.objects) for index in range(100)]
    assert all(any(pair) for pair in found) and {(True, False), (False, True)} <= set(found)


@pytest.mark.parametrize("num_frames", [2, 5, 33, 65])
def test_collisions_and_passages_are_complete_at_every_length(num_frames: int) -> None:
    world = SpriteWorld("test", 3, num_frames=num_frames)
    for index in range(40):
        scene = world.scene(index)
        starts, ends = (np.array([body.path.offset[frame] + body.start for body in scene.bodies]) for frame in (0, -1))
        if scene.key.relation == "behind":
            assert (starts[1] - starts[0]) @ (ends[1] - ends[0]) < 0
        if scene.contact is not None:
            assert 0 < scene.contact.time <= num_frames - 1
            assert num_frames == 2 or scene.contact.time < num_frames - 1


def test_pictures_show_both_at_rest_and_apart() -> None:
    world = SpriteWorld("test", 3, num_frames=1)
    relations = set()
    for index in range(40):
        clip, moving = world.sample(index), SpriteWorld("test", 3).scene(index).key
        relations.add(clip.key.relation)
        assert clip.key.relation == moving.at_rest().relation
        assert [(item.colour, item.shape) for item in clip.key.objects] == [
            (item.colour, item.shape) for item in moving.objects
        ]
        assert not clip.key.withheld and all(item.motion is None for item in clip.key.objects)
        for item in clip.key.objects:
            assert item.colour in clip.caption.split()
        picture = world.picture(index, 1.0, 0.0)
        assert picture.shape == (1, 64, 64, 3) and not np.array_equal(picture, clip.frames)
    assert relations == {"left of", "above", None}


def test_two_objects_do_not_turn() -> None:
    world = SpriteWorld("train", 3)
    assert np.array_equal(world.turn(3, 17, 8, "left", 1.0), world.sample(3).frames)
    emphasised = SpriteWorld("train", 3, emphasis={"left": 3.0})
    assert emphasised.scene(5).key == world.scene(5).key


# Captions
def _key(relation: str) -> AnswerKey:
    return _clips(relation)[0].key


def _many(key: AnswerKey, count: int = 300, **options: object) -> set[str]:
    rng = np.random.default_rng(0)
    return {caption(key, rng, **options) for _ in range(count)}  # type: ignore[arg-type]


@pytest.mark.parametrize("relation", RELATIONS)
def test_every_form_speaks_of_both_objects(relation: str) -> None:
    key = _key(relation)
    for form in FORMS:
        for text in _many(key, 40, form=form):
            assert all(item.colour in re.findall(r"\w+", text) for item in key.objects), text
    starts = {caption(key, np.random.default_rng(1), form=form, detail="detailed") for form in FORMS}
    assert len(starts) == len(FORMS)


@pytest.mark.parametrize("relation", RELATIONS)
def test_required_captions_say_both_shapes_and_both_motions(relation: str) -> None:
    free, full = _many(_key(relation)), _many(_key(relation), require=("colour", "shape", "motion"))
    shapes = [item.shape for item in _key(relation).objects]
    assert all(set(shapes) <= set(re.findall(r"\w+", text)) for text in full)
    assert min(len(text.split()) for text in free) < min(len(text.split()) for text in full)
    if relation == "collides with":
        assert all(", then it " in text for text in full)


@pytest.mark.parametrize(
    ("relation", "words"),
    [
        ("left of", r"to the left of|left of|to its right|on its right|to the right|right of|to its left|on its left"),
        ("above", r"above|over|higher|below|under|beneath"),
        ("collides with", r"\b(hit|bump|colli|crash|run|knock|strik)"),
        ("behind", r"behind|in front of"),
    ],
)
def test_the_relation_is_always_said_and_from_either_side(relation: str, words: str) -> None:
    said = _many(_key(relation))
    assert all(re.search(words, text) for text in said)
    first, second = (item.colour for item in _key(relation).objects)
    order = {text.index(first) < text.index(second) for text in said}
    assert order == {True, False}


@pytest.mark.parametrize(
    ("relation", "pattern"),
    [
        ("left of", r"^a \w+ \w+ [\w ]+ while a \w+ \w+ to its right [\w ]+$"),
        ("collides with", r"^a \w+ \w+ and a \w+ \w+ collide$"),
        ("collides with", r"^(a|the|one) (?!.*(that|then))[\w ]+ and hits (a|one) [\w ]+$"),
        ("behind", r"^a \w+ \w+ [\w ]+ behind a \w+ \w+$"),
        ("above", r"^a \w+ \w+ [\w ]+, above a \w+ \w+ that [\w ]+$"),
    ],
)
def test_everyday_prompts_are_among_the_captions(relation: str, pattern: str) -> None:
    assert any(re.match(pattern, text) for text in _many(_key(relation), 3000))


@cache
def _fitted(tiers: tuple[int, ...]) -> PreTrainedTokenizerFast:
    """Fitting one takes seconds."""
    return sprite_tokenizer(tiers=tiers)


def test_captions_are_plain_sentences_that_fit_the_text_encoder() -> None:
    corpus = list(vocabulary_corpus(1500, tiers=(3,)))
    tokenizer = _fitted((3,))
    prompts = [prompt for prompt, _ in answer_prompts("test", 3, 300)]
    for text in (*corpus, *prompts):
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]|  |\{|\}| ,|^ | $", text), text
        assert text == text.lower() and len(tokenizer(text).input_ids) <= 64
    assert not any(text.startswith("it is") for text in corpus)
    known = {word for text in corpus for word in re.findall(r"\w+", text)}
    unseen = {word for form in TEST_FORMS for text in _many(_key("behind"), form=form) for word in text.split()}
    assert {word.strip(",") for word in unseen} - known <= {"video"} and not set(TEST_FORMS) & set(SEEN_FORMS)


def test_the_tokenizer_is_that_of_the_embedded_model_unless_there_are_two_objects() -> None:
    assert list(vocabulary_corpus(40)) == list(vocabulary_corpus(40, tiers=(1, 2)))
    usual = sprite_tokenizer()
    assert usual.backend_tokenizer.to_str() == sprite_tokenizer(tiers=(2, 2)).backend_tokenizer.to_str()
    assert "▁colliding" in _fitted((3,)).get_vocab() and "▁colliding" not in usual.get_vocab()
