"""The one declaration of the settings: complete, checked, and what is made from it."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest

from vgen.errors import RequestError
from vgen.request.knobs import plain_type
from vgen.request.request import GenerateRequest
from vgen.request.settings import PANELS, Settings
from vgen.request.tasks import TASKS

ROOT = Path(__file__).resolve().parents[3]
KNOBS = GenerateRequest.knobs()
SCHEMA: dict[str, Any] = GenerateRequest.model_json_schema()["properties"]
RANGED = [
    (name, number)
    for name, schema in SCHEMA.items()
    for number in (schema, *schema.get("oneOf", ()))
    if "minimum" in number and "maximum" in number
]
GIVEN = {
    "image": "a.png", "first": "a.png", "last": "b.png", "video": "a.mp4", "mask": "m.png", "seconds": 1,
    "segments": [{"prompt": "a", "seconds": 1}],
}  # fmt: skip


def request_with(name: str, value: Any) -> GenerateRequest:
    """A request of the first task that has the setting, with everything that the task needs."""
    task = (KNOBS[name].tasks or ("generate",))[0]
    needed = {field: GIVEN[field] for field, knob in KNOBS.items() if task in knob.needed}
    return GenerateRequest.create(**{"task": task, "prompt": "a", **needed, name: value})


def test_every_setting_says_what_it_does_and_where_its_default_comes_from() -> None:
    assert set(KNOBS) == set(GenerateRequest.model_fields) == set(SCHEMA)
    for name, knob in KNOBS.items():
        assert SCHEMA[name]["description"].endswith("."), name
        assert SCHEMA[name]["left_out"] == knob.source and knob.panel in PANELS, name
        assert {*knob.tasks, *knob.needed, *knob.commands} <= set(TASKS), name
        assert "default" not in SCHEMA[name] or SCHEMA[name]["default"] is not None, name
        assert any(key in SCHEMA[name] for key in ("type", "anyOf", "oneOf")), name
    flags = [knob.flag for knob in KNOBS.values() if knob.flag]
    assert len(flags) == len(set(flags)) and all(flag.startswith("--") for flag in flags)


def test_a_json_schema_has_no_null_and_every_range() -> None:
    assert '"null"' not in str(SCHEMA).replace("'", '"')
    assert {name for name, _ in RANGED} >= {"num_frames", "guidance_scale", "input_crf", "seed", "decode_timestep"}


@pytest.mark.parametrize(("name", "number"), RANGED, ids=[name for name, _ in RANGED])
def test_a_number_out_of_its_range_is_refused_with_the_nearest(name: str, number: dict[str, Any]) -> None:
    low, high, whole = number["minimum"], number["maximum"], number["type"] == "integer"
    for wrong, nearest in ((low - 1, low), (high + 1, high)):
        with pytest.raises(RequestError) as caught:
            request_with(name, wrong)
        said = str(caught.value)
        assert said.startswith(f"{name}={wrong}") and " is outside " in said, said
        assert said.endswith(f"the nearest is {nearest:g}." if not whole else f"the nearest is {nearest}."), said
    for wrong in (True, "much", math.nan):
        with pytest.raises(RequestError, match=f"{name}=.* is not a {'whole ' if whole else ''}number"):
            request_with(name, wrong)
    assert getattr(request_with(name, str(high)), name) == high


@pytest.mark.parametrize("name", [name for name, schema in SCHEMA.items() if "enum" in schema and name != "task"])
def test_a_word_that_is_not_known_is_refused_with_the_nearest(name: str) -> None:
    known = SCHEMA[name]["enum"]
    with pytest.raises(RequestError, match=f"{name}='{known[0]}x' is not known.*did you mean '{known[0]}'"):
        request_with(name, f"{known[0]}x")


def test_none_is_the_same_as_left_out() -> None:
    nothing = dict.fromkeys(set(KNOBS) - {"prompt"})
    assert GenerateRequest.create(prompt="a", **nothing) == GenerateRequest.create(prompt="a")


def test_a_list_may_be_given_per_step() -> None:
    request = GenerateRequest.create(prompt="a", guidance_scale=[1, 4.5], stg_blocks=[[], [2, 3]])
    assert request.guidance_scale == (1.0, 4.5) and request.stg_blocks == ((), (2, 3))
    with pytest.raises(RequestError, match="guidance_scale=200 is outside 0 to 100; the nearest is 100"):
        GenerateRequest.create(prompt="a", guidance_scale=[1, 200])
    with pytest.raises(RequestError, match=r"stg_blocks=\[\] is not a list of whole numbers"):
        GenerateRequest.create(prompt="a", stg_blocks=[])


def test_types_as_people_write_them() -> None:
    written = {name: plain_type(field.annotation) for name, field in Settings.model_fields.items()}
    assert written["guidance_scale"] == "float | list[float] | None"
    assert written["stg_blocks"] == "list[int] | list[list[int]] | None"
    assert written["guidance_batching"] == "'batched' | 'separate' | None"


def test_the_page_of_the_docs_is_made_from_the_declaration() -> None:
    spec = importlib.util.spec_from_file_location("make_settings", ROOT / "docs" / "scripts" / "make_settings.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    made = script.page()
    assert script.PAGE.read_text(encoding="utf-8") == made, "run python docs/scripts/make_settings.py"
    assert all(f"| `{name}` |" in made for name in KNOBS)
