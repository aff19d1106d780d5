"""Help: every option is described, every bracket is shown, and what an option is without being given."""

from __future__ import annotations

import ast
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vgen.cli import app
from vgen.errors import counted
from vgen.request.request import DENOISE_STRENGTH

ROOT = Path(__file__).resolve().parents[3]
CLIPS = ("generate", "animate", "interpolate", "predict", "loop", "inpaint", "outpaint", "extend", "story", "restyle")


def _commands(command: Any, name: str = "vgen") -> Iterator[tuple[str, Any]]:
    yield name, command
    for below, one in getattr(command, "commands", {}).items():
        yield from _commands(one, f"{name} {below}")


COMMANDS = dict(_commands(typer.main.get_command(app)))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_described_and_no_bracket_is_taken_for_markup(name: str) -> None:
    command = COMMANDS[name]
    assert command.help
    texts = {"the command itself": command.help, "its short help": command.short_help or ""}
    for parameter in command.params:
        assert parameter.help, f"{name}: {parameter.name} has no help"
        texts[parameter.name] = parameter.help
    for owner, text in texts.items():
        assert Text.from_markup(text).plain == text.replace("\\[", "["), f"{name}: {owner}"


def test_the_table_of_a_story_is_named(run_cli: Callable[..., Any]) -> None:
    assert "[[segment]] tables" in run_cli("story", "--help").out


@pytest.mark.parametrize("name", CLIPS)
def test_options_of_clips_say_what_happens_without_them(name: str) -> None:
    for parameter in COMMANDS[f"vgen {name}"].params:
        if parameter.param_type_name == "argument" or parameter.required or parameter.name == "help":
            continue
        if parameter.default is None or parameter.default == ():
            shown = getattr(parameter, "show_default", False)
            given = parameter.name in ("keyframe", "image", "expand", "left", "right", "top", "bottom")
            assert isinstance(shown, str) or given, f"{name} {parameter.opts}"
        assert "if left out" not in parameter.help or parameter.name == "image"


def test_a_default_in_words_is_the_true_one() -> None:
    (strength,) = (option for option in COMMANDS["vgen restyle"].params if option.name == "strength")
    assert float(strength.show_default) == DENOISE_STRENGTH


def test_an_unknown_option_with_brackets_is_named_whole(run_cli: Callable[..., Any]) -> None:
    said = run_cli("generate", "a", "--[bold]x", "-o", "a.mp4")
    assert said.code == 2 and "--[bold]x" in re.sub(r"\s+", " ", said.err)


@pytest.mark.parametrize(("count", "shown"), [(0, "0 frames"), (1, "1 frame"), (2, "2 frames"), (1200, "1,200 frames")])
def test_plural(count: int, shown: str) -> None:
    assert counted(count, "frame") == shown


def test_what_is_printed_is_not_taken_for_markup() -> None:
    """Names of files and of models stand in titles and cells, and may hold brackets."""
    made = [
        (path, node)
        for top in ("vgen/cli", "vgen/bench", "training")
        for path in sorted((ROOT / top).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Console"
    ]
    assert len(made) > 4
    for path, node in made:
        markup = [word.value for word in node.keywords if word.arg == "markup"]
        assert [getattr(value, "value", None) for value in markup] == [False], f"{path}:{node.lineno}"
    table = Table(title="[old]/a.json")
    table.add_column("[new]/b.json")
    table.add_row("[F, H, W] [bold]x")
    Console(file=(stream := io.StringIO()), markup=False).print(table)
    assert all(text in stream.getvalue() for text in ("[old]/a.json", "[new]/b.json", "[F, H, W] [bold]x"))
