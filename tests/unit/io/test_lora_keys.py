"""Which module every key of a LoRA file is for, in every layout."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from vgen.errors import CheckpointError
from vgen.io.lora_file import METADATA_KEY, LoraFile
from vgen.io.lora_keys import linear_modules, map_lora_keys, settled_alpha

MODULES = linear_modules(2)
ATTENTION, TIME, INPUT = "transformer_blocks.1.attn1.to_out.0", "time_embed.linear", "proj_in"


@pytest.mark.parametrize(
    ("layout", "names", "down", "up"),
    [
        ("diffusers", [f"transformer.{m}" for m in (ATTENTION, TIME, INPUT)], "lora_A", "lora_B"),
        ("diffusers", [f"transformer.{m}" for m in (ATTENTION, TIME, INPUT)], "lora.down", "lora.up"),
        ("diffusers", [f"base_model.model.{m}" for m in (ATTENTION, TIME, INPUT)], "lora_A.default", "lora_B.default"),
        ("diffusers", [ATTENTION, TIME, INPUT], "lora_A", "lora_B"),
        (
            "original",
            [f"diffusion_model.{m}" for m in (ATTENTION, "adaln_single.linear", "patchify_proj")],
            "lora_A",
            "lora_B",
        ),
        ("original", [f"diffusion_model.{m}" for m in (ATTENTION, TIME, INPUT)], "lora_down", "lora_up"),
        (
            "kohya",
            [
                "lora_unet_transformer_blocks_1_attn1_to_out_0",
                "lora_unet_adaln_single_linear",
                "lora_unet_patchify_proj",
            ],
            "lora_down",
            "lora_up",
        ),
        (
            "kohya",
            ["lora_unet_transformer_blocks_1_attn1_to_out_0", "lora_unet_time_embed_linear", "lora_unet_proj_in"],
            "lora_down",
            "lora_up",
        ),
    ],
)
def test_every_layout_finds_the_same_modules(layout, names, down, up) -> None:
    keys = [f"{name}.{part}.weight" for name in names for part in (up, down)] + [f"{names[0]}.alpha"]
    found = map_lora_keys(keys, MODULES, "x")
    assert found.layout == layout
    assert found.factors == {
        module: (f"{name}.{down}.weight", f"{name}.{up}.weight")
        for module, name in zip((ATTENTION, TIME, INPUT), names, strict=True)
    }
    assert found.alphas == {ATTENTION: f"{names[0]}.alpha"}
    assert not found.unmatched and found.faults() is None


def _pair(stem: str) -> list[str]:
    return [f"{stem}.lora_A.weight", f"{stem}.lora_B.weight"]


def test_what_does_not_fit_is_listed() -> None:
    good = _pair(f"transformer.{ATTENTION}")
    other = [*_pair("transformer.transformer_blocks.9.attn1.to_q"), "transformer.proj_in.lora_A.weight", "odd.diff"]
    text = ["lora_te_layers_0_q.lora_down.weight", "text_encoder.q.lora_A.weight"]
    found = map_lora_keys([*good, *other, *text], MODULES, "x")
    assert list(found.factors) == [ATTENTION]
    assert set(found.unmatched) == set(other)
    assert found.text_encoder == tuple(text)
    assert "4 keys fit no linear layer" in (found.faults() or "") and "text encoder" in (found.faults() or "")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ([], "holds no tensors"),
        (_pair("unet.down.q"), "'unet.down.q.lora_A.weight'.*Expected are keys such as"),
        (_pair("text_encoder.q"), "text encoder alone"),
        (["transformer.proj_in.lora_A.weight"], "fits no layer"),
        ([*_pair("transformer.proj_in"), "transformer.proj_in.dora_scale"], "DoRA"),
        (["lora_unet_proj_in.lokr_w1"], "LoKr"),
        (_pair("transformer.proj_in") + _pair("diffusion_model.patchify_proj"), "for the same layer 'proj_in'"),
    ],
)
def test_refusals(keys, message) -> None:
    with pytest.raises(CheckpointError, match=message):
        map_lora_keys(keys, MODULES, "x")


def test_alpha_of_the_configuration() -> None:
    config = {"lora_alpha": 8, "alpha_pattern": {"^proj_in": 3, "attn1.to_q": 5}}
    assert settled_alpha("proj_in", 4, {}, "x") == 4
    assert settled_alpha("proj_in", 4, config, "x") == 3
    assert settled_alpha("transformer_blocks.0.attn1.to_q", 4, config, "x") == 5
    assert settled_alpha("transformer_blocks.0.attn2.to_q", 4, config, "x") == 8
    assert settled_alpha("proj_out", 4, {"lora_alpha": 8, "use_rslora": True}, "x") == 16
    for bad in ({"use_dora": True}, {"lora_alpha": "8"}, {"alpha_pattern": {"(a+)+$": 1}}, {"alpha_pattern": [1]}):
        with pytest.raises(CheckpointError):
            settled_alpha("proj_in", 4, bad, "x")


def test_files(tmp_path) -> None:
    tensors = {"transformer.proj_in.lora_A.weight": np.zeros((2, 8), np.float32)}
    config = {"transformer.lora_alpha": 6, "transformer.r": 2}
    save_file(tensors, tmp_path / "a.safetensors", {METADATA_KEY: json.dumps(config)})
    found = LoraFile.open(tmp_path)
    assert found.config == {"lora_alpha": 6, "r": 2}
    assert found.entries["transformer.proj_in.lora_A.weight"].shape == (2, 8)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 4}')
    assert LoraFile.open(tmp_path).config == {"lora_alpha": 4}
    assert LoraFile.open(tmp_path, "a.safetensors").config["lora_alpha"] == 6
    (tmp_path / "p.safetensors").write_bytes(b"\x80\x02}q\x00." + b"x" * 20)
    (tmp_path / "p.bin").write_bytes(b"\x80\x02}q\x00.")
    for name, message in (("p.safetensors", "never loaded"), ("p.bin", "never loaded"), ("none", "not there")):
        with pytest.raises(CheckpointError, match=message):
            LoraFile.open(tmp_path / name)
    with pytest.raises(CheckpointError, match="name the LoRA"):
        LoraFile.open(tmp_path, "other.safetensors")
