"""The `vgen` command: one thin file a subcommand. Nothing heavy is imported before a subcommand runs."""

from __future__ import annotations

import contextlib
import signal
import sys
from types import FrameType
from typing import Any, NoReturn

import typer

from vgen.cli import bench, clips, convert, data, display, evaluate, fine_tune, info, lora_export, models, train
from vgen.cli.options import ClipCommand
from vgen.errors import RequestError, VgenError
from vgen.jobs import processes
from vgen.version import __version__

INTERRUPTED = 130
TERMINATED = 143

app = typer.Typer(
    name="vgen",
    help="Text, pictures and known frames to video, on this machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"vgen {__version__}")
        raise typer.Exit


_ALONE = ("info", "models", "convert", "data", "lora", "evaluate", "bench")
"""Commands that would do the same in every process."""


@app.callback()
def _root(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", is_eager=True, callback=_show_version, help="Print the version."),
) -> None:
    """Text, pictures and known frames to video, on this machine."""
    if context.invoked_subcommand in _ALONE and processes.count() > 1:
        with processes.together((typer.Exit, typer.Abort)):
            raise RequestError(f"vgen {context.invoked_subcommand} is work for one process: start it without torchrun.")


for _command in clips.COMMANDS:
    app.command(_command.__name__, cls=ClipCommand)(_command)
app.command("info")(info.info)
app.command("models")(models.models)
app.command("convert")(convert.convert)
app.add_typer(data.app, name="data")
app.add_typer(lora_export.app, name="lora")
train.app.command("lora")(fine_tune.lora)
train.app.command("full")(fine_tune.full)
train.app.command("clip")(fine_tune.clip)
train.app.command("vae")(fine_tune.vae)
train.app.command("resume")(fine_tune.resume)
app.add_typer(train.app, name="train")
app.command("evaluate")(evaluate.evaluate)
app.add_typer(bench.app, name="bench")


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command and leave with its exit code: 0, 1 (runtime), 2 (input), 130 (interrupt), 143 (terminated).

    Args:
        arguments: the words after `vgen`; those of this process if left out.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGTERM, _terminate)
    try:
        app(args=arguments, prog_name="vgen")
    except VgenError as error:
        typer.echo(f"vgen: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        _say_interrupted()
        sys.exit(INTERRUPTED)
    except SystemExit as leaving:
        if leaving.code == INTERRUPTED and not isinstance(leaving, display.Said):
            _say_interrupted()
        raise
    sys.exit(0)


def _say_interrupted() -> None:
    typer.echo("vgen: interrupted; no unfinished file was left behind.", err=True)


def _terminate(number: int, frame: FrameType | None) -> Any:
    raise SystemExit(TERMINATED)
