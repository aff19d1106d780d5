"""diffusers' LTXPipeline and ours read each other's LoRA files, and give the same latents."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import LTXPipeline
from einops import rearrange
from peft import LoHaConfig, LoKrConfig, LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file

from vgen.pipelines import TextToVideoPipeline

CALL = {"prompt": "a", "height": 32, "width": 32, "num_frames": 9, "num_inference_steps": 2, "output_type": "latent"}
CONFIG = {
    "r": 2,
    "lora_alpha": 5,
    "target_modules": ["to_q", "proj_in", "time_embed.linear"],
    "rank_pattern": {"proj_in": 3},
    "alpha_pattern": {"proj_in": 1},
}


def _latents(pipe):
    """[B, N, C]: diffusers gives tokens, we give [B, C, f, h, w] (a token a latent here)."""
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    latents = pipe(**CALL, max_sequence_length=16, generator=generator).frames
    return latents if latents.ndim == 3 else rearrange(latents, "b c f h w -> b (f h w) c")


def _with_lora(pipe):
    """Random factors, as diffusers' own training makes and saves them."""
    pipe.transformer.add_adapter(LoraConfig(**CONFIG), adapter_name="made")
    generator = torch.Generator().manual_seed(5)
    for name, parameter in pipe.transformer.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return pipe


@pytest.fixture(scope="module")
def theirs(ltx_folders):
    return LTXPipeline.from_pretrained(ltx_folders["0.9.5"])


@pytest.fixture(scope="module")
def ours(ltx_folders):
    return TextToVideoPipeline.from_pretrained(ltx_folders["0.9.5"])


def test_files_go_both_ways(theirs, ours, tmp_path) -> None:
    plain = _latents(theirs)
    _with_lora(theirs)
    expected = _latents(theirs)
    assert (expected - plain).abs().max() > 1e-2
    LTXPipeline.save_lora_weights(
        tmp_path / "theirs",
        transformer_lora_layers=get_peft_model_state_dict(theirs.transformer, adapter_name="made"),
        transformer_lora_adapter_metadata=theirs.transformer.peft_config["made"].to_dict(),
    )
    theirs.unload_lora_weights()
    ours.load_lora_weights(tmp_path / "theirs")
    torch.testing.assert_close(_latents(ours), expected, rtol=0, atol=1e-4)
    ours.save_lora(tmp_path / "ours")
    theirs.load_lora_weights(tmp_path / "ours")
    torch.testing.assert_close(_latents(theirs), expected, rtol=0, atol=1e-4)
    theirs.unload_lora_weights()
    ours.unload_lora_weights()
    torch.testing.assert_close(_latents(ours), plain, rtol=0, atol=1e-4)


def _random_adapters(transformer, mark):
    generator = torch.Generator().manual_seed(6)
    for name, parameter in transformer.named_parameters():
        if mark in name:
            drawn = torch.randn(parameter.shape, generator=generator) * 0.3
            parameter.data = drawn.abs() + 1 if "magnitude" in name else drawn


@pytest.mark.parametrize("more", [{"lora_bias": True}, {"use_dora": True}, {"use_dora": True, "use_rslora": True}])
def test_biases_and_magnitudes_of_diffusers(theirs, ours, tmp_path, more) -> None:
    """Written by diffusers, read here, with and without fusing."""
    plain = _latents(theirs)
    theirs.transformer.add_adapter(LoraConfig(**CONFIG, **more), adapter_name="made")
    _random_adapters(theirs.transformer, "lora_")
    expected = _latents(theirs)
    assert (expected - plain).abs().max() > 1e-2
    LTXPipeline.save_lora_weights(
        tmp_path,
        transformer_lora_layers=get_peft_model_state_dict(theirs.transformer, adapter_name="made"),
        transformer_lora_adapter_metadata=theirs.transformer.peft_config["made"].to_dict(),
    )
    theirs.unload_lora_weights()
    loaded = ours.load_lora_weights(tmp_path)
    assert not loaded.unmatched
    torch.testing.assert_close(_latents(ours), expected, rtol=0, atol=1e-4)
    ours.fuse_lora()
    torch.testing.assert_close(_latents(ours), expected, rtol=0, atol=1e-4)
    ours.unfuse_lora()
    ours.unload_lora_weights()


@pytest.mark.parametrize(
    ("config", "mark"),
    [
        (LoKrConfig(r=2, alpha=3, target_modules=["to_q", "ff.net.2"], decompose_factor=4), "lokr_"),
        (LoKrConfig(r=8, alpha=3, target_modules=["to_q"], decompose_factor=4), "lokr_"),  # two whole matrices
        (LoKrConfig(r=2, alpha=3, target_modules=["to_q"], decompose_both=True, decompose_factor=4), "lokr_"),
        (LoHaConfig(r=2, alpha=3, target_modules=["to_q", "proj_in"], rank_pattern={"proj_in": 3}), "hada_"),
    ],
)
def test_lokr_and_loha_of_peft(theirs, ours, tmp_path, config, mark) -> None:
    """peft's own layers in diffusers' transformer, and the file that peft writes of them, read here."""
    plain = _latents(theirs)
    theirs.transformer.add_adapter(config, adapter_name="made")
    _random_adapters(theirs.transformer, mark)
    expected = _latents(theirs)
    assert (expected - plain).abs().max() > 1e-2
    state = get_peft_model_state_dict(theirs.transformer, adapter_name="made")
    save_file(
        {f"base_model.model.{key}": value.contiguous() for key, value in state.items()},
        tmp_path / "adapter_model.safetensors",
    )
    about = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    (tmp_path / "adapter_config.json").write_text(json.dumps(about))
    theirs.unload_lora_weights()
    loaded = ours.load_lora_weights(tmp_path)
    assert not loaded.unmatched and loaded.modules
    torch.testing.assert_close(_latents(ours), expected, rtol=0, atol=1e-4)
    ours.unload_lora_weights()
    torch.testing.assert_close(_latents(ours), plain, rtol=0, atol=1e-4)
