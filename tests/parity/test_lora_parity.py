"""diffusers' LTXPipeline and ours read each other's LoRA files, and give the same latents."""

from __future__ import annotations

import pytest
import torch
from diffusers import LTXPipeline
from einops import rearrange
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

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
