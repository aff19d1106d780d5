"""Plans: every task reads its inputs and refuses what cannot be done, with torch not imported."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vgen.errors import OutputError, RequestError
from vgen.events import Event, Reading
from vgen.io.media.video import write_video
from vgen.jobs.inputs import TASKS
from vgen.jobs.plan import plan
from vgen.request import tasks
from vgen.request.request import GenerateRequest

SEGMENTS = [{"prompt": "a", "num_frames": 20}, {"prompt": "b", "num_frames": 9}]
FIELDS: dict[str, dict[str, Any]] = {
    "generate": {"prompt": "a"},
    "animate": {"image": "PICTURE"},
    "interpolate": {"first": "PICTURE", "last": "PICTURE", "keyframes": ["PICTURE@8"]},
    "predict": {"video": "VIDEO"},
    "loop": {"image": "PICTURE"},
    "inpaint": {"video": "VIDEO", "mask": "PICTURE"},
    "outpaint": {"video": "VIDEO", "width": 128},
    "extend": {"video": "VIDEO", "seconds": 3},
    "story": {"image": "PICTURE", "segments": SEGMENTS},
    "restyle": {"video": "VIDEO", "prompt": "a"},
}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    Image.new("RGB", (64, 64), (255, 255, 255)).save(tmp_path / "picture.png")
    frames = np.repeat(np.arange(20, dtype=np.uint8), 64 * 64 * 3).reshape(20, 64, 64, 3)
    write_video(f"{tmp_path}/video/", frames, 8.0)
    return {"PICTURE": str(tmp_path / "picture.png"), "VIDEO": str(tmp_path / "video")}


def _request(task: str, files: dict[str, str], model: Path, **more: Any) -> GenerateRequest:
    text = json.dumps({"task": task, "model": str(model), **FIELDS[task], **more})
    for name, file in files.items():
        text = text.replace(name, file)
    return GenerateRequest.create(**json.loads(text))


def test_the_table_has_every_task() -> None:
    assert set(TASKS) == set(tasks.TASKS) == set(FIELDS)


def test_what_is_given_becomes_conditions(files: dict[str, str], paper_model: Path, tmp_path: Path) -> None:
    seen: list[Event] = []
    places = {}
    for task in FIELDS:
        job = plan(_request(task, files, paper_model), tmp_path / "x.mp4", on_event=seen.append)
        known = [(np.asarray(entry.frames).shape[:-3], entry.frame_index) for entry in job.inputs.known]
        places[task] = (sorted(job.inputs.arguments), known, job.inputs.long is not None)
    assert places == {
        "generate": ([], [], False),
        "animate": (["image"], [], False),
        "interpolate": ([], [((), 0), ((), 8), ((), -1)], False),
        "predict": ([], [((9,), 0)], False),
        "loop": ([], [((), 0), ((), -1)], False),
        "inpaint": ([], [((17,), 0)], False),
        "outpaint": ([], [((17,), 0)], False),
        "extend": ([], [], True),
        "story": ([], [], True),
        "restyle": (["video"], [], False),
    }
    assert seen == [Reading(files["VIDEO"])] * 5


def test_predicting_backward_ends_the_clip(files: dict[str, str], paper_model: Path, tmp_path: Path) -> None:
    job = plan(_request("predict", files, paper_model, backward=True, keep_frames=5), tmp_path / "x.mp4")
    (known,) = job.inputs.known
    assert (len(known.frames), known.frame_index) == (5, 12)
    assert job.notes[0].endswith("the clip ends with its first 5 frames of 20."), job.notes


def test_a_long_clip_is_refused_before_anything_is_loaded(
    files: dict[str, str], paper_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = _request("story", files, paper_model)
    long = plan(request, tmp_path / "x.mp4").inputs.long
    assert long is not None and (long.num_frames, long.prompts) == (29, ["a", "b"])
    with pytest.raises(RequestError, match="overlap=4 does not fit"):
        plan(_request("story", files, paper_model, overlap=4), tmp_path / "x.mp4")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage(10**6, 10**6 - 1000, 1000))
    with pytest.raises(OutputError, match=r"needs 356,352 bytes for its frames while it is made, and 1,000 are free"):
        plan(request, tmp_path / "x.mp4")


def test_planning_imports_no_torch(files: dict[str, str], paper_model: Path, tmp_path: Path) -> None:
    program = (
        "import json, sys, vgen.jobs.many_clips; from vgen.jobs.plan import plan; from vgen.request.request import "
        "GenerateRequest\nfor fields in json.loads(sys.argv[1]): plan(GenerateRequest.create(**fields), sys.argv[2])\n"
        "print('torch' in sys.modules)"
    )
    requests = [_request(task, files, paper_model).model_dump(mode="json", exclude_none=True) for task in FIELDS]
    words = [sys.executable, "-c", program, json.dumps(requests), str(tmp_path / "x.mp4")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
