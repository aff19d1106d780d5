"""Making a pipeline from another, moving, converting and saving it: nothing is printed, and files follow the umask."""

from __future__ import annotations

import os
import stat
import warnings
from pathlib import Path

import pytest
import torch
from diffusers.utils import logging as diffusers_logging

from vgen.pipelines import ImageToVideoPipeline, MaskedPredictionPipeline, TextToVideoPipeline


@pytest.fixture
def half(tiny_pipeline_folder: Path) -> TextToVideoPipeline:
    return TextToVideoPipeline.from_pretrained(tiny_pipeline_folder, torch_dtype=torch.float16)


def test_nothing_is_printed(
    half: TextToVideoPipeline, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    diffusers_logging.enable_propagation()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            half.to("cpu")
            half.to("cpu", torch.float16)
            other = ImageToVideoPipeline.from_pipe(half)
            MaskedPredictionPipeline.from_pipe(other).to(torch.float32).to("cpu")
            half.save_pretrained(tmp_path / "saved")
    finally:
        diffusers_logging.disable_propagation()
    said = capfd.readouterr()
    assert (said.out, said.err, caplog.messages) == ("", "", [])


def test_float16_runs_on_a_cpu_as_to_says_by_its_silence(tiny_pipeline_folder: Path) -> None:
    pipeline = TextToVideoPipeline.from_pretrained(tiny_pipeline_folder, torch_dtype=torch.float16)
    pipeline.set_progress_bar_config(disable=True)
    frames = pipeline("a", num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="pt").frames
    assert bool(torch.isfinite(frames).all())


def test_saved_files_follow_the_umask(half: TextToVideoPipeline, tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        half.save_pretrained(tmp_path / "saved")
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "saved").rglob("*") if path.is_file()}
    assert modes == {0o644}
