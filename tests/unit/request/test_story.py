"""Stories: read from TOML, and refused with the place that is wrong."""

from __future__ import annotations

import pytest

from vgen.errors import RequestError
from vgen.request.story import read_story

GOOD = """
model = "sprites"
seed = 3

[[segment]]
prompt = "a red circle moves to the left"
seconds = 2

[[segment]]
prompt = "it bounces"
num_frames = 12
cross_fade = 0.5
guidance_scale = 2.5
"""


def test_a_story(tmp_path) -> None:
    (tmp_path / "s.toml").write_text(GOOD)
    story = read_story(tmp_path / "s.toml")
    assert story.fields == {"model": "sprites", "seed": 3}
    first, second = story.segments
    assert (first.length(8.0), second.length(8.0), first.settings) == (16, 12, {})
    assert (second.cross_fade, second.settings) == (0.5, {"guidance_scale": 2.5})


def test_a_byte_order_mark_is_no_part_of_a_story(tmp_path) -> None:
    (tmp_path / "s.toml").write_text(GOOD, encoding="utf-8-sig")
    assert read_story(tmp_path / "s.toml").fields == {"model": "sprites", "seed": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = ", "is not TOML"),
        ("seed = 1", r"has no \[\[segment\]\]"),
        ('task = "generate"\n[[segment]]\nprompt = "a"\nseconds = 1', "'task' outside its segments"),
        ("segment = 3", r"has no \[\[segment\]\]"),
        ('[[segment]]\nprompt = "a"', "segment 1: a segment needs seconds or num_frames, and not both"),
        ('[[segment]]\nprompt = "a"\nseconds = 1\nnum_frames = 4', "and not both"),
        ('[[segment]]\nprompt = "a"\nseconds = 1\n[[segment]]\nseconds = 1', "segment 2: prompt is missing"),
        ('[[segment]]\nprompt = "a"\nseconds = -1', "seconds=-1.*nearest is 0.01"),
        ('[[segment]]\nprompt = "a"\nlenght = 1', "'lenght' is not known"),
        ("[[segment]]\nprompt = 3\nseconds = 1", "segment 1: prompt=3 is not text"),
    ],
)
def test_refusals(tmp_path, text, message) -> None:
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(RequestError, match=message):
        read_story(tmp_path / "s.toml")


def test_no_file(tmp_path) -> None:
    with pytest.raises(RequestError, match="cannot be read"):
        read_story(tmp_path / "none.toml")
    (tmp_path / "large.toml").write_bytes(b"#" * (2 << 20))
    with pytest.raises(RequestError, match="that is no story"):
        read_story(tmp_path / "large.toml")
