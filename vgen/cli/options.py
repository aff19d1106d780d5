"""The options of commands that make clips, made from `vgen.request.settings`.

Numbers are taken as text: the declared types are the one place that checks them, so the command, Python and a server
give the same messages.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from vgen.cli import display
from vgen.jobs import processes

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from vgen.request.knobs import Knob

_KEYWORD = inspect.Parameter.KEYWORD_ONLY

Output = Annotated[
    str,
    typer.Option("--output", "-o", metavar="FILE", help="A .mp4, .webm, .gif or folder/."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there already.")]
Progress = Annotated[
    str,
    typer.Option(
        "--progress",
        metavar="MODE",
        help="On stderr: bar, jsonl (one JSON object per line, for programs) or none.",
        hidden=True,
    ),
]


@dataclass(frozen=True)
class JobOptions:
    """What was given for the shared options.

    Attributes:
        output: name of the output.
        overwrite: replace what is there.
        fields: request fields that were given; those left out are absent.
    """

    output: str
    overwrite: bool
    fields: dict[str, Any]


class ClipCommand(TyperCommand):
    """A command with the options of its task, which are made when it is used: `vgen --help` needs none of them."""

    @cached_property
    def _whole(self) -> Any:
        app = typer.Typer(add_completion=False)
        app.command(self.name)(_whole_command(self.callback.function))  # type: ignore[union-attr]
        return typer.main.get_command(app)

    @property
    def params(self) -> Any:
        """Arguments and options; the rare options show with --help-all only."""
        return self._whole.params

    @params.setter
    def params(self, value: Any) -> None:
        """Only the whole command has them."""

    def invoke(self, ctx: Any) -> Any:
        """Call the function with what was given."""
        return ctx.invoke(self._whole.callback, **ctx.params)


def clip_command(function: Callable[..., None]) -> Callable[..., None]:
    """Mark a function as a command of its name's task; it receives the shared options as `options: JobOptions`.

    To be registered with `cls=ClipCommand`.
    """

    @functools.wraps(function)
    def command(**values: Any) -> None:
        _whole_command(function)(**values)

    command.__signature__ = inspect.Signature()  # type: ignore[attr-defined]
    command.__annotations__ = {}
    command.function = function  # type: ignore[attr-defined]
    return command


def _whole_command(function: Callable[..., None]) -> Callable[..., None]:
    """The command with the options of its task."""
    shared = [
        inspect.Parameter("output", _KEYWORD, annotation=Output),
        *_task_options(function.__name__),
        inspect.Parameter("overwrite", _KEYWORD, default=False, annotation=Overwrite),
        inspect.Parameter("progress", _KEYWORD, default="bar", annotation=Progress),
        inspect.Parameter("help_all", _KEYWORD, default=False, annotation=_HelpAll),
    ]

    def gathered(given: dict[str, Any]) -> JobOptions:
        own = {name: given.pop(name) for name in ("output", "overwrite", "progress", "help_all")}
        fields = {name: value for name, value in given.items() if value not in (None, [])}
        return JobOptions(own["output"], own["overwrite"], fields)

    command = with_options(function, shared, gathered)

    @functools.wraps(command)
    def together(**values: Any) -> None:
        passing = (typer.Exit, typer.Abort)
        with processes.together(passing), display.showing(values["progress"]), display.notes_of_warnings():
            command(**values)

    return together


def _task_options(task: str) -> list[inspect.Parameter]:
    """The options of a task's request, the common ones first."""
    from vgen.request.request import GenerateRequest

    fields = GenerateRequest.model_fields
    knobs = [
        (name, knob)
        for name, knob in GenerateRequest.knobs().items()
        if knob.flag and task in (knob.commands or knob.tasks or (task,))
    ]
    knobs.sort(key=lambda entry: not entry[1].common)
    return [_option(name, knob, fields[name], task) for name, knob in knobs]


def _option(name: str, knob: Knob, field: FieldInfo, task: str) -> inspect.Parameter:
    from vgen.request.knobs import plain_type

    written = plain_type(field.annotation)
    taken: Any = bool | None if written.startswith("bool") else list[str] | None if knob.repeated else str | None
    required = task in knob.needed
    shortened = re.split(r"[;:] |, such as|\.$", str(field.description))[0]
    option = typer.Option(
        str(knob.flag),
        metavar=knob.metavar or None,
        help=f"{shortened}." if required else f"{shortened} ({knob.source}).",
        show_default=False,
        hidden=not (knob.common or required),
    )
    return inspect.Parameter(
        name, _KEYWORD, default=... if required else None, annotation=Annotated[str if required else taken, option]
    )


def _show_all(ctx: typer.Context, asked: bool) -> None:
    """Show the help with every option, whole and by panel."""
    if not asked:
        return
    from vgen.request.request import GenerateRequest

    knobs = GenerateRequest.knobs()
    option: Any
    for option in ctx.command.params:
        if option.param_type_name != "option":
            continue
        option.hidden = False
        if option.name in knobs:
            option.help = GenerateRequest.model_fields[option.name].description
            option.rich_help_panel, option.show_default = knobs[option.name].panel, knobs[option.name].source
    typer.echo(ctx.get_help())
    raise typer.Exit


_HelpAll = Annotated[
    bool, typer.Option("--help-all", is_eager=True, callback=_show_all, help="Show every option and exit.")
]


def with_options(
    function: Callable[..., None],
    shared: Sequence[inspect.Parameter],
    gathered: Callable[[dict[str, Any]], Any],
) -> Callable[..., None]:
    """A command with the options of `function` and some that it shares with others.

    Args:
        function: takes what `gathered` makes of the shared ones as `options`.
        shared: names, defaults and annotations.
        gathered: is given their values by name.
    """
    own = [p for p in inspect.signature(function, eval_str=True).parameters.values() if p.name != "options"]
    every = [p.replace(kind=_KEYWORD) for p in (*own, *shared)]

    @functools.wraps(function)
    def command(**values: Any) -> None:
        given = {p.name: values.pop(p.name) for p in shared}
        function(**values, options=gathered(given))

    command.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in every}
    return command
