"""Latent upsamplers on disk: every format gives the same model, and what is none is refused with a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vgen.errors import CheckpointError
from vgen.hub.upsampler import find_upsampler, single_file_config
from vgen.models import LatentUpsampler
from vgen.pipelines import load_upsampler

CONFIGS = {
    "spatial": {"dims": 3},
    "temporal": {"spatial_upsample": False, "temporal_upsample": True},
    "both": {"temporal_upsample": True},
    "frames": {"dims": 2},
}


def _model(**config) -> LatentUpsampler:
    torch.manual_seed(0)
    return LatentUpsampler(**{"in_channels": 4, "mid_channels": 32, "num_blocks_per_stage": 2, **config}).eval()


def _save(model: LatentUpsampler, file: Path, config=None) -> Path:
    metadata = {"config": config if isinstance(config, str) else json.dumps(config)} if config is not None else None
    save_file(model.state_dict(), file, metadata=metadata)
    return file


@pytest.mark.parametrize("stated", [True, False])
@pytest.mark.parametrize("case", CONFIGS)
def test_single_files_with_and_without_a_configuration(tmp_path: Path, case: str, stated: bool) -> None:
    model = _model(**CONFIGS[case])
    config = {**{key: model.config[key] for key in CONFIGS["both"] | {"dims": 0, "in_channels": 0}}}
    config["_class_name"] = "LatentUpsampler"
    file = _save(model, tmp_path / "upscaler.safetensors", config if stated else None)
    found = LatentUpsampler.from_single_file(file)
    for key in ("in_channels", "mid_channels", "num_blocks_per_stage", "dims", "spatial_upsample", "temporal_upsample"):
        assert found.config[key] == model.config[key], key
    state = model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in found.state_dict().items())
    assert not found.training
    half = load_upsampler(file, torch_dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    half.float().save_pretrained(tmp_path / "folder")
    again = load_upsampler(tmp_path / "folder")
    assert all(torch.equal(value, half.state_dict()[key]) for key, value in again.state_dict().items())


def test_hub_names_are_looked_up_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="hf download someone/upscaler"):
        find_upsampler("someone/upscaler")
    repository = tmp_path / "models--someone--upscaler"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    _model().save_pretrained(repository / "snapshots" / "abc" / "latent_upsampler")
    assert find_upsampler("someone/upscaler").channels == 4
    with pytest.raises(CheckpointError, match=r"hf download Lightricks/LTX-Video ltxv-spatial-upscaler-0.9.8.safeten"):
        find_upsampler("ltxv-spatial-upscaler-0.9.8")
    published = tmp_path / "models--Lightricks--LTX-Video"
    (published / "refs").mkdir(parents=True)
    (published / "refs" / "main").write_text("abc")
    (published / "snapshots" / "abc").mkdir(parents=True)
    _save(_model(), published / "snapshots" / "abc" / "ltxv-spatial-upscaler-0.9.8.safetensors")
    assert find_upsampler("ltxv-spatial-upscaler-0.9.8").channels == 4


def test_what_is_no_upsampler_is_refused(tmp_path: Path) -> None:
    model = _model()
    text = tmp_path / "text.safetensors"
    text.write_text("this is no safetensors file at all")
    other = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(2)}, other)
    empty, wrong = tmp_path / "empty", tmp_path / "wrong"
    empty.mkdir()
    wrong.mkdir()
    (wrong / "config.json").write_text('{"_class_name": "AutoencoderKLLTXVideo"}')
    bare = tmp_path / "bare"
    model.save_pretrained(bare)
    (bare / "diffusion_pytorch_model.safetensors").unlink()
    for path, message in (
        (text, "not a safetensors file|truncated"),
        (other, "is not a latent upsampler: it holds no initial_conv.weight"),
        (empty, "neither config.json nor a folder latent_upsampler"),
        (wrong, "the configuration of a AutoencoderKLLTXVideo, not of an upsampler"),
        (bare, "has no weights"),
        (tmp_path / "none", "is not there"),
        ("", "is not a name"),
        (_save(model, tmp_path / "broken.safetensors", "{"), "not JSON"),
        (_save(model, tmp_path / "odd.safetensors", {"dims": "three"}), "dims='three' makes no sense"),
        (_save(model, tmp_path / "list.safetensors", [1]), "not a JSON object"),
    ):
        with pytest.raises(CheckpointError, match=message):
            find_upsampler(path)


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    state = _model().state_dict()
    config = {"in_channels": 4, "mid_channels": 32, "num_blocks_per_stage": 2}
    file = tmp_path / "file.safetensors"
    for change, message in (
        ({"res_blocks.0.conv1.weight": None}, r"lack 1 tensor: res_blocks\.0\.conv1\.weight"),
        ({"extra": torch.zeros(1)}, "hold 1 unknown tensor: extra"),
        ({"final_conv.bias": torch.zeros(5)}, r"have 1 tensor of another shape: final_conv\.bias is \[5\], not \[4\]"),
    ):
        tensors = {key: value for key, value in {**state, **change}.items() if value is not None}
        save_file(tensors, file, metadata={"config": json.dumps(config)})
        assert single_file_config(file)["mid_channels"] == 32
        with pytest.raises(CheckpointError, match=message):
            load_upsampler(file)
