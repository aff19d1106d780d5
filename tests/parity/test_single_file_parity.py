"""Key tables and converted folders against diffusers' own converters and loaders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLLTXVideo, LTXConditionPipeline, LTXPipeline, LTXVideoTransformer3DModel
from diffusers.loaders.single_file_utils import (
    convert_ltx_transformer_checkpoint_to_diffusers,
    convert_ltx_vae_checkpoint_to_diffusers,
)
from safetensors.torch import load_file

from vgen.hub.convert import file_to_folder
from vgen.io.weights.ltx_keys import TRANSFORMER_KEYS, vae_keys
from vgen.models.empty import model_shapes

_NEWER = "vae.encoder.conv_out.conv.weight"


def test_vae_keys(vae_configs, fill_zeros) -> None:
    """diffusers recognises 0.9.5 by 2048 channels before the encoder's last convolution: a stand-in has as many."""
    for version, config in vae_configs.items():
        if version != "0.9.5":  # the original numbers are those of stages that widen where the public ones do
            config = {**config, "block_out_channels": (8, 16, 32, 32)}
        if version == "0.9.0":
            config["decoder_block_out_channels"] = (8, 16, 32, 32)
        weights = fill_zeros(AutoencoderKLLTXVideo(**config)).state_dict()
        table = vae_keys(config)
        original = {f"vae.{table.to_original(key)}": value for key, value in weights.items()}
        assert len(original) == len(weights)
        if version == "0.9.5":
            original[_NEWER] = torch.empty(9, 2048, 1, 1, 1)
        found = convert_ltx_vae_checkpoint_to_diffusers(dict(original))
        assert found.keys() == weights.keys(), version
        for key, value in found.items():
            assert torch.equal(value, weights[key]) or f"vae.{table.to_original(key)}" == _NEWER
        assert {f"vae.{table.to_original(table.to_diffusers(key[4:]))}" for key in original} == original.keys()


def test_transformer_keys() -> None:
    sizes = {"in_channels": 8, "out_channels": 8, "num_attention_heads": 2, "attention_head_dim": 8}
    sizes |= {"cross_attention_dim": 16, "num_layers": 2, "caption_channels": 8}
    weights = LTXVideoTransformer3DModel(**sizes).state_dict()
    original = {f"model.diffusion_model.{TRANSFORMER_KEYS.to_original(key)}": value for key, value in weights.items()}
    assert not {key.removeprefix("model.diffusion_model.") for key in original if "norm" in key} & weights.keys()
    found = convert_ltx_transformer_checkpoint_to_diffusers(original)
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[key], weights[key]) for key in weights)


@pytest.mark.parametrize("generation", ["0.9.1", "0.9.5"])
def test_diffusers_loads_a_converted_folder(
    ltx_original: Callable[..., tuple[Path, Path]], tmp_path: Path, generation: str
) -> None:
    folder, file = ltx_original(generation)
    file_to_folder(file, tmp_path / "folder", model_shapes, text_encoder=folder)
    cls = LTXConditionPipeline if generation == "0.9.5" else LTXPipeline
    pipeline = cls.from_pretrained(tmp_path / "folder")
    for name in ("transformer", "vae"):
        stored = load_file(folder / name / "diffusion_pytorch_model.safetensors")
        loaded = getattr(pipeline, name).state_dict()
        assert loaded.keys() == stored.keys()
        assert all(torch.equal(loaded[key], stored[key].to(loaded[key].dtype)) for key in stored)
    assert pipeline.scheduler.config.use_dynamic_shifting
    assert pipeline.tokenizer("a").input_ids == LTXPipeline.from_pretrained(folder).tokenizer("a").input_ids
