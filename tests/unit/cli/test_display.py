"""What is said while a command works: few lines where it is piped, one bar in a terminal, nothing in the results."""

from __future__ import annotations

import io
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vgen.cli import display
from vgen.cli.display import Display
from vgen.errors import OutOfMemoryError
from vgen.events import Decoding, Encoding, Event, Failed, Loading, Note, Part, Preview, Step, Writing, as_json
from vgen.jobs.steps import StepSequence


class Clock:
    """Seconds that pass when a test says so."""

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


def _steps(show: Callable[[Event], None], clock: Clock, count: int, seconds: float) -> None:
    for step in range(count + 1):
        clock.now += seconds if step else 0
        show(Step(step, count))


def test_piped_every_phase_has_a_line_and_steps_one_in_several_seconds(
    piped: Display, stream: io.StringIO, clock: Clock
) -> None:
    piped.show(Loading("sprites"))
    assert _lines(stream) == ["loading sprites"], "at once"
    piped.show(Encoding())
    _steps(StepSequence(piped.show, clock=clock), clock, 40, 1.0)
    piped.show(Decoding())
    piped.show(Writing("clip.mp4"))
    said = _lines(stream)
    assert said[:2] == ["encoding", "denoising: 40 steps"] and said[-2:] == ["decoding", "writing clip.mp4"]
    assert said[2:-2] == [f"denoising: step {n} of 40, {40 - n} s left" for n in range(5, 40, 5)] + [
        "denoising: step 40 of 40"
    ]


def test_of_many_clips_the_first_is_shown_in_full_and_all_are_counted(
    piped: Display, stream: io.StringIO, clock: Clock
) -> None:
    steps = StepSequence(piped.show, [None] * 100, clock)
    for number in range(1, 101):
        piped.show(Part("clip", number, 100))
        steps(Encoding())
        _steps(steps, clock, 10, 0.1)
        steps(Decoding())
        steps(Writing(f"{number}.mp4"))
        steps.next_call()
    said = _lines(stream)
    assert said[:4] == [
        "clip 1 of 100, encoding",
        "clip 1 of 100, denoising: 1,000 steps",
        "clip 1 of 100, decoding",
        "clip 1 of 100, writing 1.mp4",
    ]
    assert len(said) <= 4 + 100 / 5
    place = r"clip (\d+) of 100, denoising: step (\d+) of 1000, (?:(\d+) min )?(\d+) s left"
    found = [tuple(int(text or 0) for text in one.groups()) for line in said if (one := re.fullmatch(place, line))]
    assert len(found) > 10
    for clip, step, minutes, seconds in found:
        assert 10 * (clip - 1) <= step <= 10 * clip
        assert 60 * minutes + seconds == pytest.approx((1000 - step) * 0.1, abs=1.5), "of all clips"


def test_windows_of_a_resumed_clip_begin_anywhere(piped: Display, stream: io.StringIO, clock: Clock) -> None:
    steps = StepSequence(piped.show, [10, 10], clock)
    piped.show(Part("window", 3, 4))
    steps(Encoding())
    _steps(steps, clock, 10, 1.0)
    assert _lines(stream)[:2] == ["window 3 of 4, encoding", "window 3 of 4, denoising: 20 steps"]
    steps.next_call()
    piped.show(Part("window", 4, 4))
    _steps(steps, clock, 10, 1.0)
    assert _lines(stream)[-1] == "window 4 of 4, denoising: step 20 of 20"


def test_in_a_terminal_there_is_one_bar_that_goes_away(stream: io.StringIO, clock: Clock) -> None:
    shown = Display(stream, terminal=True, clock=clock)
    shown.show(Loading("a[b].safetensors"))
    shown._bar.refresh()
    shown.show(Part("clip", 2, 2))
    _steps(StepSequence(shown.show, [None, 6], clock), clock, 6, 2.0)
    (task,) = shown._bar.tasks
    assert (task.completed, task.total) == (6, 12)
    shown._bar.refresh()
    assert "clip 2 of 2, denoising" in stream.getvalue() and "step 6 of 12, 12 s left" in stream.getvalue()
    assert "loading a[b].safetensors" in stream.getvalue(), "what looks like markup is shown"
    with shown.paused():
        assert not shown._bar.live.is_started
    assert shown._bar.live.is_started
    shown.close()
    assert not shown._bar.live.is_started
    assert stream.getvalue().rstrip().endswith("\x1b[2K"), "the line is erased"


def test_outside_of_a_command_nothing_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    display.show(Loading("sprites"))
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


def _json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_progress_as_json_lines(tiny_pipeline_folder: Path, tmp_path: Path, run_cli: Callable[..., Any]) -> None:
    output = tmp_path / "a.gif"
    words = ["generate", "a", "-o", output, "--model", tiny_pipeline_folder, "--steps", 3, "--progress", "jsonl"]
    done = run_cli(*words)
    events = _json_lines(done.err)
    steps = [event for event in events if event["event"] == "step"]
    names = [name for name, _ in itertools.groupby(event["event"] for event in events)]
    assert names == ["queued", "loading", "encoding", "step", "decoding", "writing", "done"]
    assert [(step["step"], step["num_steps"]) for step in steps] == [(number, 3) for number in range(4)]
    assert steps[0]["seconds_left"] is None and steps[1]["seconds_left"] > 0
    last = events[-1]
    assert (last["path"], last["num_frames"], last["num_bytes"]) == (str(output), 9, output.stat().st_size)
    assert done.out.startswith(f"{output}: ") and done.out.count("\n") == 1
    refused = run_cli(*words)
    (event,) = _json_lines(refused.err)
    assert (refused.code, event["event"], event["exit_code"]) == (2, "failed", 2)
    assert "exists already" in event["message"]


def test_json_lines_of_failures_and_interrupts(
    paper_model: Path, tmp_path: Path, run_cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["generate", "a", "-o", tmp_path / "a.gif", "--model", paper_model, "--progress", "jsonl"]
    causes: list[tuple[BaseException, int, dict[str, Any]]] = [
        (OutOfMemoryError("too large"), 1, {"event": "failed", "message": "too large", "exit_code": 1}),
        (KeyboardInterrupt(), 130, {"event": "cancelled"}),
    ]
    for error, code, last in causes:

        def fail(*_: object, error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr("vgen.jobs.run.load_pipeline", fail)
        done = run_cli(*words)
        assert (done.code, _json_lines(done.err)[-1]) == (code, last)
        assert [event["event"] for event in _json_lines(done.err)].count(last["event"]) == 1


def test_no_progress_is_silent(tiny_pipeline_folder: Path, tmp_path: Path, run_cli: Callable[..., Any]) -> None:
    words = ["generate", "a", "-o", tmp_path / "a.gif", "--model", tiny_pipeline_folder, "--steps", 1]
    done = run_cli(*words, "--progress", "none")
    assert (done.code, done.err, done.out.count("\n")) == (0, "", 1)
    refused = run_cli(*words, "--progress", "json")
    assert (refused.code, "progress='json' is not known: use bar, jsonl or none" in refused.err) == (2, True)


def test_every_event_is_json() -> None:
    assert as_json(Note("a")) == {"event": "note", "text": "a"}
    assert as_json(Failed("b", 1)) == {"event": "failed", "message": "b", "exit_code": 1}
    assert as_json(Preview(1, 4, object())) == {"event": "preview", "step": 1, "num_steps": 4}
