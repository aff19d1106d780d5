"""From a single file to a clip: through the pipelines and through the command."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from vgen.errors import CheckpointError, RequestError
from vgen.hub.convert import file_to_folder, folder_to_file
from vgen.io.media.video import read_video
from vgen.io.weights.safetensors_file import read_header
from vgen.models.empty import model_shapes
from vgen.pipelines import MaskedPredictionPipeline, TextToVideoPipeline

_CALL = {"prompt": "dance monkey", "height": 64, "width": 64, "num_frames": 9, "frame_rate": 25.0}
_CALL |= {"num_inference_steps": 2, "guidance_scale": 3.0, "max_sequence_length": 16, "negative_prompt": "blurry"}


def _clip(pipeline: Any, call: dict[str, Any] = _CALL) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(**call, generator=torch.Generator().manual_seed(0), output_type="pt").frames


@pytest.mark.parametrize("generation", ["0.9.0", "0.9.1", "0.9.5"])
def test_same_video_from_file_and_folder(ltx_folders: dict[str, Path], tmp_path: Path, generation: str) -> None:
    folder, file = ltx_folders[generation], tmp_path / "ltx.safetensors"
    folder_to_file(folder, file, model_shapes)
    expected = TextToVideoPipeline.from_pretrained(folder)
    loaded = TextToVideoPipeline.from_pretrained(file, text_encoder_folder=folder)
    torch.testing.assert_close(_clip(loaded), _clip(expected), atol=1e-5, rtol=0)
    assert loaded.scheduler.config.use_dynamic_shifting
    assert loaded.name_of_model == "ltx.safetensors"
    assert loaded.model_convention.name == "ltx", "the file remembers the folder's pipeline class"
    original = json.loads(read_header(file).metadata["config"])
    assert original["transformer"]["causal_temporal_positioning"] is (generation == "0.9.5")
    save_file(load_file(file), file, metadata={"config": read_header(file).metadata["config"]})
    plain = TextToVideoPipeline.from_pretrained(file, text_encoder_folder=folder)
    assert plain.model_convention.name == ("ltx-condition" if generation == "0.9.5" else "ltx")
    of_file = {**_CALL, "decode_timestep": 0.0, "decode_noise_scale": 0.0}
    if generation != "0.9.5":
        torch.testing.assert_close(_clip(plain, of_file), _clip(expected, of_file), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("generation", "transformer", "scheduler", "facts"),
    [
        ("0.9.0", {"causal_temporal_positioning": True}, {}, {"causal_coordinates": True}),
        ("0.9.5", {"causal_temporal_positioning": False}, {}, {"causal_coordinates": False}),
        ("0.9.5", {}, {"shifting": None, "sampler": "Uniform"}, {"schedule": "linspace"}),
        ("0.9.5", {}, {"shifting": None, "sampler": "Constant", "shift": 0.7}, {"schedule": "linspace"}),
        ("0.9.5", {}, {"sampler": "LinearQuadratic"}, {"schedule": "linear_quadratic"}),
    ],
)
def test_positions_and_sampler_of_the_metadata(ltx_folders, tmp_path, generation, transformer, scheduler, facts):
    """They hold in every task and convention, through a folder and back, and change the clip."""
    folder, file, converted = ltx_folders[generation], tmp_path / "ltx.safetensors", tmp_path / "converted"
    folder_to_file(folder, file, model_shapes)
    config = json.loads(read_header(file).metadata["config"])
    usual = json.dumps(config)
    config["transformer"] |= transformer
    config["scheduler"] |= scheduler
    save_file(load_file(file), tmp_path / "usual.safetensors", {"config": usual})
    save_file(load_file(file), file, {"config": json.dumps(config)})
    file_to_folder(file, converted, model_shapes, text_encoder=folder)
    folder_to_file(converted, tmp_path / "again.safetensors", model_shapes)
    assert json.loads(read_header(tmp_path / "again.safetensors").metadata["config"]) == config
    index = json.loads((converted / "model_index.json").read_text())
    (converted / "original.safetensors").unlink()
    folder_to_file(converted, tmp_path / "anew.safetensors", model_shapes)
    anew = json.loads(read_header(tmp_path / "anew.safetensors").metadata["config"])
    assert anew["transformer"]["causal_temporal_positioning"] == config["transformer"]["causal_temporal_positioning"]
    assert {name: anew["scheduler"].get(name) for name in scheduler} == pytest.approx(scheduler)
    assert {name: index["defaults"][name] for name in facts} == facts

    texts = {"text_encoder_folder": folder}
    loaded = TextToVideoPipeline.from_pretrained(file, **texts, defaults={"guidance_scale": 2.0})
    assert facts.items() <= loaded.config.defaults.items() and loaded.config.defaults["guidance_scale"] == 2.0
    call = {**_CALL, "decode_timestep": 0.0, "decode_noise_scale": 0.0, "num_inference_steps": 4}
    clips = [_clip(loaded, call)]
    for source, more in ((converted, {}), (converted, {"defaults": {}}), (tmp_path / "anew.safetensors", texts)):
        clips.append(_clip(TextToVideoPipeline.from_pretrained(source, **more), call))
        torch.testing.assert_close(clips[-1], clips[0], atol=1e-5, rtol=0)
    loaded.save_pretrained(tmp_path / "saved")
    for pipeline in (
        MaskedPredictionPipeline.from_pretrained(tmp_path / "saved"),
        TextToVideoPipeline.from_pretrained(tmp_path / "saved", convention="original"),
    ):
        assert pipeline.convention.causal_coordinates == facts.get("causal_coordinates", generation == "0.9.5")
        assert pipeline.convention.stated_schedule == facts.get("schedule")
    usual_clip = _clip(TextToVideoPipeline.from_pretrained(tmp_path / "usual.safetensors", **texts), call)
    assert (usual_clip - clips[0]).abs().max() > 1e-3


def test_components_dtype_and_refusals(ltx_folders: dict[str, Path], tmp_path: Path) -> None:
    folder, file = ltx_folders["0.9.5"], tmp_path / "ltxv-2b-0.9.8-distilled.safetensors"
    folder_to_file(folder, file, model_shapes)
    save_file(load_file(file), file, metadata={"config": read_header(file).metadata["config"]})
    base = TextToVideoPipeline.from_pretrained(folder)
    texts = {"text_encoder": base.text_encoder, "tokenizer": base.tokenizer}
    half = TextToVideoPipeline.from_pretrained(file, **texts, torch_dtype=torch.bfloat16)
    assert (half.transformer.dtype, half.vae.dtype) == (torch.bfloat16, torch.bfloat16)
    assert half.text_encoder is base.text_encoder
    assert half.config.defaults["guidance_scale"] == 1.0
    assert len(half.fill_settings({"prompt": "a"}).sigmas) == 8
    named = MaskedPredictionPipeline.from_single_file(file, **texts, version="ltx-2b-0.9.5", vae=base.vae)
    assert named.vae is base.vae
    assert named.config.defaults["num_inference_steps"] == 40
    with pytest.raises(CheckpointError, match=r"Known are ltx-2b-0\.9\.0"):
        TextToVideoPipeline.from_single_file(file, version="0.9.9")
    with pytest.raises(RequestError, match="device_map cannot be given for a single file: convert it"):
        TextToVideoPipeline.from_pretrained(file, **texts, device_map="balanced")


def test_no_text_encoder(ltx_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    folder, file, converted = ltx_folders["0.9.0"], tmp_path / "ltx.safetensors", tmp_path / "converted"
    folder_to_file(folder, file, model_shapes)
    file_to_folder(file, converted, model_shapes)
    for model in (file, converted):
        with pytest.raises(
            CheckpointError, match=r"no text encoder, and none is on this machine\. Fetch .*hf download"
        ):
            TextToVideoPipeline.from_pretrained(model)
    pipeline = TextToVideoPipeline.from_pretrained(converted, text_encoder_folder=folder)
    expected = _clip(TextToVideoPipeline.from_pretrained(folder))
    torch.testing.assert_close(_clip(pipeline), expected, atol=1e-5, rtol=0)


def test_misshaped_tensors_of_a_folder_are_named(ltx_random: Callable[[str], Path]) -> None:
    folder = ltx_random("0.9.0")
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "in_channels": 16}))
    with pytest.raises(
        CheckpointError, match=r"1 tensor of another shape: proj_in\.weight is \[32, 8\], not \[32, 16\]"
    ):
        TextToVideoPipeline.from_pretrained(folder)


def test_generate(ltx_folders: dict[str, Path], tmp_path: Path, run_cli: Callable[..., Any]) -> None:
    folder, file = ltx_folders["0.9.5"], tmp_path / "ltx.safetensors"
    folder_to_file(folder, file, model_shapes)
    for name in ("text_encoder", "tokenizer"):
        shutil.copytree(folder / name, tmp_path / name)
    size = ("--num-frames", 9, "--height", 64, "--width", 64, "--steps", 2, "--device", "cpu")
    done = run_cli("generate", "a", "-o", tmp_path / "clip.mp4", "--model", file, *size)
    assert done.code == 0, done.err
    assert read_video(tmp_path / "clip.mp4").frames.shape == (9, 64, 64, 3)
