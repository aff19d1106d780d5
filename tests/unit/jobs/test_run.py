"""Runs of jobs in Python: results, events, pipelines that are kept, and cancelling within a step."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vgen
from vgen import events
from vgen.engine.cancel import cancellable
from vgen.errors import Cancelled, OutputError, RequestError
from vgen.io.media.video import read_metadata, read_video
from vgen.jobs.plan import plan
from vgen.jobs.run import Runner, run
from vgen.models.vae.blocks import ResnetBlock
from vgen.request.request import GenerateRequest


def _request(folder: Path, **fields: Any) -> GenerateRequest:
    defaults = {"prompt": "a red circle", "seed": 3, "num_inference_steps": 3, "draft_steps": 0}
    return GenerateRequest.create(model=str(folder), device="cpu", **{**defaults, **fields})


def _of(seen: list[events.Event], kind: type[events.Event]) -> list[Any]:
    return [event for event in seen if isinstance(event, kind)]


def test_a_request_is_run(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    seen: list[events.Event] = []
    request = _request(tiny_pipeline_folder, draft_steps=2)
    result = vgen.run(request, output=tmp_path / "clip", on_event=seen.append)
    assert (result.path, result.num_frames, result.request.device) == (tmp_path / "clip", 9, "cpu")
    assert result.request.seed == 3 and result.seconds > 0
    metadata = read_metadata(tmp_path / "clip")
    assert metadata is not None and metadata["num_inference_steps"] == 3
    names = list(dict.fromkeys(event.name for event in seen))
    assert names == ["queued", "loading", "encoding", "step", "decoding", "writing", "done"]
    steps = _of(seen, events.Step)
    assert sorted({step.step for step in steps}) == list(range(8)) and {step.num_steps for step in steps} == {7}
    with pytest.raises(OutputError, match="exists already"):
        vgen.run(request, output=tmp_path / "clip")
    again = vgen.run(request, output=tmp_path / "clip", overwrite=True)
    assert np.array_equal(read_video(again.path).frames, read_video(result.path).frames)


def test_a_failure_is_an_event_too(paper_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RequestError("on purpose")

    monkeypatch.setattr("vgen.jobs.run.load_pipeline", fail)
    seen: list[events.Event] = []
    with pytest.raises(RequestError):
        run(plan(_request(paper_model), tmp_path / "clip.mp4"), seen.append)
    assert seen[-1] == events.Failed("on purpose", 2)


def test_windows_are_one_sequence_of_steps(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (32, 32), (90, 20, 20)).save(tmp_path / "picture.png")
    segments = [{"prompt": "a", "num_frames": 12}, {"prompt": "b", "num_frames": 8, "num_inference_steps": 2}]
    fields = {"task": "story", "segments": segments, "image": str(tmp_path / "picture.png"), "draft_steps": None}
    seen: list[events.Event] = []
    job = plan(_request(tiny_pipeline_folder, prompt="", **fields), tmp_path / "clip")
    assert job.inputs.long is not None
    run(job, seen.append)
    steps, parts = _of(seen, events.Step), _of(seen, events.Part)
    total = sum((3, 2)[window.segment] for window in job.inputs.long.windows)
    assert len(job.inputs.long.windows) > 2
    assert {step.num_steps for step in steps} == {total}
    assert [step.step for step in steps] == sorted(step.step for step in steps) and steps[-1].step == total
    count = len(job.inputs.long.windows)
    assert parts == [events.Part("window", number, count) for number in range(1, count + 1)]


def test_a_long_clip_that_was_cancelled_is_resumed(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    fields = {"task": "story", "segments": [{"prompt": "a", "num_frames": 20}], "draft_steps": None}
    request = _request(tiny_pipeline_folder, prompt="", **fields)
    seen: list[events.Event] = []

    def in_second_window() -> bool:
        return events.Part("window", 2, 3) in seen

    with pytest.raises(Cancelled):
        run(plan(request, tmp_path / "clip"), seen.append, in_second_window)
    assert not (tmp_path / "clip").exists()
    resumed = run(plan(request, tmp_path / "clip"), seen.append, previews=True)
    assert resumed.notes[-1].startswith("Resumed at frame 7 of 20") and _of(seen, events.Part)[-2].number == 2
    previews = _of(seen, events.Preview)
    assert [(preview.step, preview.num_steps) for preview in previews] == [(step, 6) for step in range(1, 7)]
    whole = run(plan(request, tmp_path / "whole"))
    assert np.array_equal(read_video(resumed.path).frames, read_video(whole.path).frames)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip", "whole"]


def test_a_runner_keeps_what_was_used_last(
    tiny_pipeline_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vgen.jobs import load

    loaded: list[str] = []

    def counted(job: Any, *rest: Any) -> Any:
        loaded.append(job.request.dtype)
        return load.load_pipeline(job, *rest)

    monkeypatch.setattr("vgen.jobs.run.load_pipeline", counted)
    Image.new("RGB", (32, 32), (90, 20, 20)).save(tmp_path / "picture.png")
    animate = {"task": "animate", "image": str(tmp_path / "picture.png"), "draft_steps": None}
    requests = [{}, {"seed": 4}, animate, {"dtype": "bfloat16"}, {}, {"dtype": "bfloat16"}]
    clips: list[np.ndarray] = []
    seen: list[events.Event] = []
    with Runner() as runner:
        for number, fields in enumerate(requests):
            job = plan(_request(tiny_pipeline_folder, **fields), tmp_path / f"{number}")
            clips.append(read_video(runner.run(job, seen.append).path).frames)
            assert runner.num_loaded == 1
        assert loaded == ["float32", "bfloat16", "float32", "bfloat16"], "three clips by one, and then one at a time"
    assert runner.num_loaded == 0
    assert len(_of(seen, events.Loading)) == 4
    assert np.array_equal(clips[0], clips[4]) and not np.array_equal(clips[0], clips[1])
    alone = run(plan(_request(tiny_pipeline_folder, **animate), tmp_path / "alone"))
    assert np.array_equal(clips[2], read_video(alone.path).frames), "as by a pipeline of its own"
    with Runner(keep=2) as runner:
        for number, fields in enumerate(requests):
            runner.run(plan(_request(tiny_pipeline_folder, **fields), tmp_path / f"{number}", overwrite=True))
        assert runner.num_loaded == 2
    assert len(loaded) == 4 + 1 + 2


class Switch:
    """Counts how often it is looked at; is on from a number of looks on."""

    def __init__(self, at: int | None = None) -> None:
        self.at, self.looks = at, 0

    def __call__(self) -> bool:
        self.looks += 1
        return self.at is not None and self.looks >= self.at


def test_cancelling_ends_a_job_within_a_step_and_harms_nothing(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    def job(name: str) -> Any:
        return plan(_request(tiny_pipeline_folder), tmp_path / "out" / name)

    (tmp_path / "out").mkdir()
    with Runner() as runner:
        plain = read_video(runner.run(job("plain")).path).frames
        never, seen = Switch(), list[events.Event]()
        watched = read_video(runner.run(job("watched"), seen.append, never).path).frames
        assert np.array_equal(plain, watched)
        looks = never.looks
        assert looks > 3 * len(_of(seen, events.Step)), "between blocks, not only between steps"
        names: set[str] = set()
        for at in range(1, looks + 1, max(1, looks // 9)):
            seen.clear()
            with pytest.raises(Cancelled):
                runner.run(job("cancelled"), seen.append, Switch(at))
            assert seen[-1] == events.Cancelled()
            names.add(seen[-2].name)
            assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["plain", "watched"]
        assert {"queued", "step", "decoding"} <= names
        again = read_video(runner.run(job("again")).path).frames
    assert np.array_equal(plain, again)


def test_a_job_that_waits_is_cancelled_too(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    running, waiting = (plan(_request(tiny_pipeline_folder), tmp_path / name) for name in ("running", "waiting"))
    begun, ended, outcome = threading.Event(), threading.Event(), list[BaseException]()
    runner = Runner()

    def hold(event: events.Event) -> None:
        if isinstance(event, events.Encoding):
            begun.set()
            assert ended.wait(60)

    def wait() -> None:
        try:
            runner.run(waiting, None, lambda: True)
        except Cancelled as error:
            outcome.append(error)
        ended.set()

    def both() -> None:
        assert begun.wait(60)
        wait()

    thread = threading.Thread(target=both)
    thread.start()
    runner.run(running, hold)
    thread.join()
    assert len(outcome) == 1 and (tmp_path / "running").exists() and not (tmp_path / "waiting").exists()


@pytest.fixture
def hooked(tiny_pipeline_folder: Path) -> Callable[[], int]:
    """The number of hooks on the modules of a pipeline."""
    pipe = vgen.TextToVideoPipeline.from_pretrained(tiny_pipeline_folder)

    def count() -> int:
        models = (pipe.transformer, pipe.vae, pipe.text_encoder)
        return sum(len(module._forward_pre_hooks) for model in models for module in model.modules())

    count.pipe = pipe  # type: ignore[attr-defined]
    return count


def test_hooks_are_there_only_while_a_call_can_be_cancelled(hooked: Any) -> None:
    pipe, before = hooked.pipe, hooked()
    pipe.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 1, "draft_steps": 0, "output_type": "latent"}
    with cancellable(pipe, lambda: None):
        blocks = [module for module in pipe.vae.modules() if isinstance(module, ResnetBlock)]
        assert hooked() == before + len(blocks) + len(pipe.text_encoder.encoder.block) + 1
        first = pipe("a", generator=torch.Generator().manual_seed(0), **call).frames
        assert hooked() == before + len(blocks) + len(pipe.text_encoder.encoder.block) + 1 + len(
            pipe.transformer.transformer_blocks
        )
    assert hooked() == before
    assert torch.equal(first, pipe("a", generator=torch.Generator().manual_seed(0), **call).frames)
