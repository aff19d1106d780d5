"""The log, the ways to stop a run, and sample sheets."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vgen.training.control import Control, StopRequested
from vgen.training.report.log import Journal, save_sheet


def test_rows_hold_means_since_the_last_row(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with Journal(path, 0, 4) as journal:
        journal.add({"loss": torch.tensor(1.0)})
        journal.add({"loss": torch.tensor(3.0), "seldom": torch.tensor(5.0)})
        journal.flush(2, learning_rate=0.5)
        journal.add({"loss": torch.tensor(7.0)})
        journal.flush(4)
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert (first["step"], first["loss"], first["seldom"], first["learning_rate"]) == (2, 2.0, 5.0, 0.5)
    assert second["loss"] == 7.0
    assert "seldom" not in second


def test_a_resumed_run_rewrites_what_it_repeats(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4, "lo')
    Journal(path, 2, 10)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_files_ask_to_stop_and_to_save(tmp_path: Path) -> None:
    control = Control(tmp_path)
    assert not control.stop_requested()
    control.poll()
    (tmp_path / "save").touch()
    assert [control.save_requested(), control.save_requested()] == [True, False]
    (tmp_path / "stop").touch()
    with pytest.raises(StopRequested):
        control.poll()
    control.acknowledge()
    assert not control.stop_requested()


def test_sigterm_asks_to_stop_and_handlers_come_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Control(tmp_path) as control:
        os.kill(os.getpid(), signal.SIGTERM)
        assert control.stop_requested()
    assert signal.getsignal(signal.SIGTERM) is before


def test_sheet_has_a_row_a_clip(tmp_path: Path) -> None:
    clips = [np.full((17, 8, 8, 3), 10, dtype=np.uint8), np.full((1, 8, 8, 3), 200, dtype=np.uint8)]
    save_sheet(tmp_path / "a" / "sheet.png", clips)
    sheet = np.asarray(Image.open(tmp_path / "a" / "sheet.png"))
    seen = [row for row in (10, 200) if (sheet == row).all(-1).any()]
    tops = [np.nonzero((sheet == value).all(-1))[0].min() for value in seen]
    assert seen == [10, 200] and tops[0] < tops[1]
    assert (sheet == 200).all(-1).sum() == 16 * 16  # one frame, enlarged twice
