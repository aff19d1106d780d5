"""Every cell of the table in docs/parity.md: a generation of LTX-Video, a format, a task."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from vgen.hub.convert import folder_to_file
from vgen.io.media.video import read_video, write_video
from vgen.models.empty import model_shapes
from vgen.pipelines import (
    ImageToVideoPipeline,
    InterpolationPipeline,
    MaskedPredictionPipeline,
    TextToVideoPipeline,
    VideoCondition,
    VideoToVideoPipeline,
)

GENERATIONS = ("0.9.0", "0.9.1", "0.9.5")
FRAMES = np.random.default_rng(0).integers(0, 256, (17, 64, 96, 3), dtype=np.uint8)
FIRST, LAST = PIL.Image.fromarray(FRAMES[0]), PIL.Image.fromarray(FRAMES[-1])
TASKS: dict[str, tuple[type, dict[str, Any]]] = {
    "text to video": (TextToVideoPipeline, {}),
    "image to video": (ImageToVideoPipeline, {"image": FIRST}),
    "interpolation": (InterpolationPipeline, {"first": FIRST, "last": LAST}),
    "prediction": (MaskedPredictionPipeline, {"conditions": [VideoCondition(FRAMES[:9])]}),
    "video to video": (VideoToVideoPipeline, {"video": FRAMES, "denoise_strength": 0.6}),
}
CALL = {
    "prompt": "dance monkey",
    "height": 64,
    "width": 96,
    "num_frames": 17,
    "frame_rate": 25,
    "num_inference_steps": 3,
    "guidance_scale": 3.0,
    "max_sequence_length": 16,
    "decode_timestep": 0.05,  # a file's own default where a folder has none
    "decode_noise_scale": 0.025,
    "output_type": "pt",
}


@pytest.fixture(scope="module")
def by_format(ltx_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict]:
    """Loads a generation from each format, once."""
    loaded: dict[str, dict[str, TextToVideoPipeline]] = {}

    def load(generation: str) -> dict[str, TextToVideoPipeline]:
        if generation not in loaded:
            folder, root = ltx_folders[generation], tmp_path_factory.mktemp("formats")
            folder_to_file(folder, root / "model.safetensors", model_shapes)
            own = TextToVideoPipeline.from_pretrained(folder)
            own.save_pretrained(root / "saved")
            loaded[generation] = {
                "folder of diffusers": own,
                "folder of vgen": TextToVideoPipeline.from_pretrained(root / "saved"),
                "single file": TextToVideoPipeline.from_pretrained(
                    root / "model.safetensors", text_encoder_folder=folder
                ),
            }
        return loaded[generation]

    return load


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("generation", GENERATIONS)
def test_each_format_gives_the_same_clip(by_format: Callable[[str], dict], generation: str, task: str) -> None:
    cls, given = TASKS[task]
    clips = {}
    for name, base in by_format(generation).items():
        pipeline = cls(**base.components)
        pipeline.set_progress_bar_config(disable=True)
        clips[name] = pipeline(**CALL, **given, generator=torch.Generator().manual_seed(0)).frames
        assert clips[name].shape == (1, 17, 3, 64, 96)
        assert clips[name].std() > 0.01
    expected = clips["folder of diffusers"]
    for name, clip in clips.items():
        torch.testing.assert_close(clip, expected, rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_each_command_runs_on_a_folder(
    ltx_folders: dict[str, Path], tmp_path: Path, run_cli: Callable[..., Any]
) -> None:
    FIRST.save(tmp_path / "first.png")
    LAST.save(tmp_path / "last.png")
    video = write_video(f"{tmp_path}/video/", FRAMES, 25.0)
    size = ("--num-frames", 17, "--height", 64, "--width", 96, "--steps", 2, "--device", "cpu", "--seed", 1)
    commands = {
        "generate": ("a kite",),
        "animate": (tmp_path / "first.png", "a kite"),
        "interpolate": (tmp_path / "first.png", tmp_path / "last.png", "a kite"),
        "predict": (video, "a kite"),
        "restyle": (video, "a kite"),
    }
    for command, given in commands.items():
        target = tmp_path / f"{command}.mp4"
        done = run_cli(command, *given, "-o", target, "--model", ltx_folders["0.9.5"], *size)
        assert done.code == 0, (command, done.err)
        assert read_video(target).frames.shape == (17, 64, 96, 3)
