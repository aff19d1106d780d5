"""Sizes and presets of two passes, and what a request says of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from vgen.errors import CheckpointError, RequestError, ShapeError
from vgen.hub.catalog import CATALOG
from vgen.hub.model import Model
from vgen.jobs.upscale import check_upscale
from vgen.request.request import GenerateRequest
from vgen.request.two_pass_presets import pass_shapes, preset_for, presets
from vgen.types import Strides, VideoShape

LTX, SPATIAL = Strides(8, 32, 32), Strides(1, 2, 2)
DEFAULTS = {"height": 64, "width": 64, "num_frames": 17, "frame_rate": 8.0, "num_inference_steps": 20}
DEFAULTS["guidance_scale"] = 3.0


@pytest.mark.parametrize(
    ("asked", "first", "second"),
    [
        ((704, 1216), (448, 800), (896, 1600)),
        ((512, 768), (320, 480), (640, 960)),  # 0.6666666 * 768 is just below 512, as in the published configurations
        ((480, 832), (288, 544), (576, 1088)),
        ((64, 64), (32, 32), (64, 64)),
    ],
)
def test_sizes_are_those_of_the_published_configurations(asked, first, second) -> None:
    factor = presets()["distilled"].downscale_factor
    found = pass_shapes(VideoShape(121, *asked), LTX, SPATIAL, factor)
    assert (found.first, found.second) == (VideoShape(121, *first), VideoShape(121, *second))
    found.first.check(LTX)
    found.second.check(LTX)


def test_time() -> None:
    found = pass_shapes(VideoShape(33, 64, 96), LTX, Strides(2, 1, 1))
    assert found == (VideoShape(17, 64, 96), VideoShape(33, 64, 96))
    with pytest.raises(ShapeError, match=r"num_frames=25 cannot be enlarged .* use 17 or 33"):
        pass_shapes(VideoShape(25, 64, 96), LTX, Strides(2, 1, 1))
    with pytest.raises(ShapeError, match=r"height=32 leaves the first pass 21, .* use 64 or more"):
        pass_shapes(VideoShape(9, 32, 64), LTX, SPATIAL)
    with pytest.raises(RequestError, match=r"downscale_factor=1\.5"):
        pass_shapes(VideoShape(9, 64, 64), LTX, SPATIAL, 1.5)


def test_presets_are_the_published_ones() -> None:
    known = presets()
    assert known["distilled"].first_pass["sigmas"] == [1, 0.9937, 0.9875, 0.9812, 0.975, 0.9094, 0.725]
    assert known["distilled"].second_pass["sigmas"] == [0.9094, 0.725, 0.4219]
    toned = {name for name, preset in known.items() if "tone_map_compression_ratio" in preset.second_pass}
    assert toned == {"distilled-13b"}
    assert known["distilled-13b"].second_pass["tone_map_compression_ratio"] == 0.6
    assert known["distilled-13b"].first_pass == known["distilled"].first_pass
    first, second = known["dev"].first_pass, known["dev"].second_pass
    assert (first["num_inference_steps"], first["skip_final_steps"]) == (30, 3)
    assert (second["num_inference_steps"], second["skip_initial_steps"]) == (30, 17)
    lengths = {len(first[name]) for name in ("guidance_sigmas", "guidance_scale", "stg_scale", "stg_blocks")}
    assert lengths == {len(first["guidance_rescale"])} == {7}


def test_requests() -> None:
    request = GenerateRequest.create(prompt="a", upscale="x").resolve(DEFAULTS, LTX)
    assert (request.upscale, request.upscale_preset) == ("x", "plain")
    assert request.to_metadata()["upscale_preset"] == "plain"
    request = GenerateRequest.create(prompt="a").resolve(DEFAULTS, LTX)
    assert (request.upscale, request.upscale_preset) == (None, None)
    model = {**DEFAULTS, "upscale_preset": "distilled"}
    assert GenerateRequest.create(prompt="a", upscale="x").resolve(model, LTX).upscale_preset == "distilled"
    model = {**DEFAULTS, "allowed_inference_steps": (1.0, 0.9937, 0.9875, 0.9812, 0.975, 0.9094, 0.725, 0.4219)}
    assert GenerateRequest.create(prompt="a", upscale="x").resolve(model, LTX).upscale_preset == "distilled"
    model = {**DEFAULTS, "allowed_inference_steps": [20]}
    assert GenerateRequest.create(prompt="a", upscale="x").resolve(model, LTX).upscale_preset == "plain"
    for fields, message in (
        ({"upscale_preset": "dev"}, "upscale_preset does nothing without upscale"),
        ({"upscale": "x", "upscale_preset": "div"}, "upscale_preset='div' is not known: .*did you mean 'dev'"),
        ({"upscale": "x", "upscale_preset": ["dev"]}, "is not known"),
        ({"upscale": "a\0"}, "upscale holds a NUL"),
    ):
        with pytest.raises(RequestError, match=message):
            GenerateRequest.create(prompt="a", **fields)
    for field, value in (("sigmas", [1, 0.5]), ("num_inference_steps", 8), ("guidance_scale", 5)):
        asked = GenerateRequest.create(prompt="a", upscale="x", upscale_preset="distilled", **{field: value})
        with pytest.raises(RequestError, match=rf"{field}=.* and upscale_preset='distilled' contradict"):
            asked.resolve(DEFAULTS, LTX)


def _single_file(path: Path, channels: int = 128) -> Path:
    tensors = {
        "initial_conv.weight": np.zeros((32, channels, 3, 3, 3), np.float32),
        "upsampler.0.weight": np.zeros((128, 32, 3, 3), np.float32),
    }
    config = {"in_channels": channels, "mid_channels": 32, "num_blocks_per_stage": 1, "dims": 3}
    save_file(tensors, path, metadata={"config": json.dumps(config)})
    return path


def test_an_upsampler_is_checked_before_torch_is_imported(tmp_path: Path, paper_model: Path, run_cli) -> None:
    words = ["generate", "a", "-o", tmp_path / "a.mp4", "--model", paper_model]
    done = run_cli(*words, "--upscale", _single_file(tmp_path / "small.safetensors", 16))
    assert (done.code, "latents of 16 channels and the model's VAE gives 128" in done.err) == (2, True)
    done = run_cli(*words, "--upscale", tmp_path / "none")
    assert (done.code, "is not there" in done.err) == (2, True)
    file = _single_file(tmp_path / "file.safetensors")
    done = run_cli(*words, "--upscale", file, "--height", 8, "--width", 8, "--num-frames", 17)
    assert (done.code, "height=8 leaves the first pass 5, less than the model's stride 8" in done.err) == (2, True)
    request = GenerateRequest.create(prompt="a", upscale=str(file), height=4000, width=4000, num_frames=81)
    with pytest.raises(ShapeError, match=r"width=5328, height=5328, num_frames=81 needs about"):
        check_upscale(request.resolve(DEFAULTS, Strides(8, 32, 32)), Model.find(paper_model))
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        check_upscale(request.resolve(DEFAULTS, LTX), Model("", tmp_path))


def test_nothing_heavy_is_imported(tmp_path: Path, paper_model: Path) -> None:
    file = _single_file(tmp_path / "file.safetensors")
    code = (
        "import sys, vgen.jobs.run; from vgen.jobs.plan import plan; from vgen.request.request import GenerateRequest; "
        f"r = GenerateRequest.create(prompt='a', upscale={str(file)!r}, model={str(paper_model)!r}); "
        f"j = plan(r, {str(tmp_path / 'a.mp4')!r}); print(j.notes, 'torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "('two passes (plain): 40 x 40, then 80 x 80, resized to 64 x 64.',) False", run.stderr


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("ltx-13b-0.9.8-distilled", "distilled-13b"),
        ("ltx-13b-0.9.7-distilled", "distilled"),
        ("ltx-2b-0.9.8-distilled", "distilled"),
        ("ltx-13b-0.9.7-dev", "dev"),
        ("ltx-2b-0.9.5", "plain"),
    ],
)
def test_public_models_have_the_preset_of_their_makers(name: str, preset: str) -> None:
    assert preset_for(CATALOG[name].defaults) == preset
