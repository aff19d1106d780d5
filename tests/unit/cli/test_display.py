"""What is said while a command works: few lines where it is piped, one bar in a terminal, nothing in the results."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vgen.cli import display
from vgen.cli.display import Display
from vgen.pipelines import TextToVideoPipeline
from vgen.progress import Progress


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def _lines(stream: io.StringIO) -> list[str]:
    said = stream.getvalue().splitlines()
    stream.truncate(0)
    stream.seek(0)
    return said


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def piped(stream: io.StringIO, clock: Clock) -> Display:
    return Display(stream, terminal=False, clock=clock)


def _steps(shown: Display, clock: Clock, count: int, seconds: float, first: int = 0, total: int | None = None) -> None:
    for step in range(first, count + 1):
        clock.now += seconds if step else 0
        shown.tell(Progress("denoising", step, total or count))


def test_piped_every_phase_has_a_line_and_steps_one_in_several_seconds(
    piped: Display, stream: io.StringIO, clock: Clock
) -> None:
    piped.tell(Progress("loading", what="sprites"))
    assert _lines(stream) == ["loading sprites"], "at once"
    piped.tell(Progress("encoding"))
    _steps(piped, clock, 40, 1.0)
    piped.tell(Progress("decoding"))
    piped.tell(Progress("writing", what="clip.mp4"))
    said = _lines(stream)
    assert said[:2] == ["encoding", "denoising: 40 steps"] and said[-2:] == ["decoding", "writing clip.mp4"]
    assert said[2:-2] == [f"denoising: step {n} of 40, {40 - n} s left" for n in range(5, 40, 5)] + [
        "denoising: step 40 of 40"
    ]


def test_a_second_pass_that_is_slower_is_believed(piped: Display, stream: io.StringIO, clock: Clock) -> None:
    _steps(piped, clock, 20, 1.0, total=30)
    piped.tell(Progress("encoding"))
    _steps(piped, clock, 26, 8.0, first=20, total=30)
    assert _lines(stream)[-1] == "denoising: step 26 of 30, 32 s left"


def test_of_many_clips_the_first_is_shown_in_full_and_all_are_counted(
    piped: Display, stream: io.StringIO, clock: Clock
) -> None:
    for number in range(1, 101):
        piped.set_part("clip", number, 100)
        piped.tell(Progress("encoding"))
        _steps(piped, clock, 10, 0.1)
        piped.tell(Progress("decoding"))
        piped.tell(Progress("writing", what=f"{number}.mp4"))
    said = _lines(stream)
    assert said[:4] == [
        "clip 1 of 100, encoding",
        "clip 1 of 100, denoising: 10 steps",
        "clip 1 of 100, decoding",
        "clip 1 of 100, writing 1.mp4",
    ]
    assert len(said) <= 4 + 100 / 5
    place = r"clip (\d+) of 100, denoising: step (\d+) of 10, (?:(\d+) min )?(\d+) s left"
    found = [tuple(int(text or 0) for text in one.groups()) for line in said if (one := re.fullmatch(place, line))]
    assert len(found) > 10
    for clip, step, minutes, seconds in found:
        expected = (100 - clip) * 1.0 + (10 - step) * 0.1
        assert 60 * minutes + seconds == pytest.approx(expected, abs=1.5), "of all clips"


def test_windows_of_a_clip_that_is_gone_on_with_begin_anywhere(
    piped: Display, stream: io.StringIO, clock: Clock
) -> None:
    piped.set_part("window", 3, 4)
    piped.tell(Progress("encoding"))
    _steps(piped, clock, 10, 1.0)
    assert _lines(stream)[:2] == ["window 3 of 4, encoding", "window 3 of 4, denoising: 10 steps"]
    piped.set_part("window", 4, 4)
    _steps(piped, clock, 10, 1.0)
    assert _lines(stream)[-1] == "window 4 of 4, denoising: step 10 of 10"


def test_in_a_terminal_there_is_one_bar_that_goes_away(stream: io.StringIO, clock: Clock) -> None:
    shown = Display(stream, terminal=True, clock=clock)
    shown.tell(Progress("loading", what="a[b].safetensors"))
    shown._bar.refresh()
    shown.set_part("clip", 2, 3)
    _steps(shown, clock, 6, 2.0)
    (task,) = shown._bar.tasks
    assert (task.completed, task.total) == (6, 6)
    shown._bar.refresh()
    assert "clip 2 of 3, denoising" in stream.getvalue() and "step 6 of 6, 12 s left" in stream.getvalue()
    assert "loading a[b].safetensors" in stream.getvalue(), "what looks like markup is shown"
    with shown.paused():
        assert not shown._bar.live.is_started
    assert shown._bar.live.is_started
    shown.close()
    assert not shown._bar.live.is_started
    assert stream.getvalue().rstrip().endswith("\x1b[2K"), "the line is erased"


def test_outside_of_a_command_nothing_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    display.tell(Progress("loading"))
    display.say("a result")
    said = capsys.readouterr()
    assert (said.out, said.err) == ("a result\n", "")


def test_a_command_says_its_phases_on_stderr_and_its_result_on_stdout(
    tiny_pipeline_folder: Path, tmp_path: Path, run_cli: Callable[..., Any]
) -> None:
    output = tmp_path / "a.gif"
    words = ["generate", "a", "-o", output, "--model", tiny_pipeline_folder, "--steps", 3, "--draft-steps", 2]
    done = run_cli(*words)
    assert done.code == 0, done.err
    lines = [line for line in done.err.splitlines() if "step " not in line]
    assert lines == [
        f"loading {tiny_pipeline_folder}",
        "encoding",
        "denoising: 7 steps",
        "decoding",
        f"writing {output}",
    ]
    assert done.out.startswith(f"{output}: ") and done.out.count("\n") == 1
    assert display._shown is None


def test_the_first_word_comes_before_torch_is_imported(tmp_path: Path) -> None:
    """In a process of its own, which ends where torch would be imported."""
    program = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch': raise SystemExit(7)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "from vgen.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: a\n")
    for words in (
        ["generate", "a red circle", "-o", str(tmp_path / "a.mp4")],
        ["train", "run", str(recipe)],
        ["evaluate"],
        ["bench"],
    ):
        done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (7, ""), done.stderr
        assert re.fullmatch(r"(loading|reading) \S.*\n", done.stderr), (words, done.stderr)


def test_pipelines_of_commands_have_no_bar_of_their_own(tiny_pipeline_folder: Path) -> None:
    from vgen.cli import jobs

    request = jobs.ask("generate", "a.gif", False, {"prompt": "a", "model": str(tiny_pipeline_folder)})
    job = jobs.plan(request, jobs.Model.find(request.model), "a.gif", False)
    pipe = jobs.load_pipeline("TextToVideoPipeline", job)
    assert isinstance(pipe, TextToVideoPipeline)
    assert pipe.observer is display.tell and pipe.progress_bar(total=1).disable
