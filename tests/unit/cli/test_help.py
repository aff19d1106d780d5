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
from vgen.request.request import DENOISE_STRENGTH, GenerateRequest

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
    knobs = GenerateRequest.knobs()
    for parameter in COMMANDS[f"vgen {name}"].params:
        if parameter.param_type_name == "argument" or parameter.required or parameter.name == "help":
            continue
        if parameter.default is None or parameter.default == ():
            source = knobs[parameter.name].source if parameter.name in knobs else "none"
            assert parameter.help.endswith(f"({source})."), f"{name} {parameter.opts}"
        assert "if left out" not in parameter.help


@pytest.mark.parametrize("name", CLIPS)
def test_help_fits_on_a_screen_and_help_all_shows_the_rest(
    name: str, run_cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    short, whole = (run_cli(name, option).out for option in ("--help", "--help-all"))
    assert 24 <= len(short.splitlines()) <= 40
    shown = [option for option in COMMANDS[f"vgen {name}"].params if option.param_type_name == "option"]
    assert len(shown) > 25
    for option in shown:
        assert option.opts[0] in whole, option.opts
        assert (option.opts[0] in short) == (not option.hidden) or option.opts[0] == "--fit"
    assert "--steps" in short and "--stg-scale" not in short
    assert all(f"─ {panel} " in whole for panel in ("Sampling", "Size", "Model", "Machine"))
    assert "[default: (the model's schedule)]" in whole


def test_an_option_belongs_to_the_commands_of_its_tasks() -> None:
    names = {name: {option.name for option in COMMANDS[f"vgen {name}"].params} for name in CLIPS}
    for field, about in GenerateRequest.knobs().items():
        takers = {name for name in CLIPS if field in names[name]}
        required = {name for name in CLIPS if about.flag is None and field in about.needed}
        arguments = takers - set(about.commands or about.tasks or CLIPS) if about.flag else takers
        assert not about.flag or set(about.commands or about.tasks or CLIPS) <= takers, field
        assert arguments <= set(about.tasks or CLIPS) | required, field


def test_a_default_in_words_is_the_true_one() -> None:
    assert float(GenerateRequest.knobs()["denoise_strength"].source) == DENOISE_STRENGTH


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
