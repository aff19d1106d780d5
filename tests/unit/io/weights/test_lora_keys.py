"""Which module every key of a LoRA file is for, in every layout."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from vgen.errors import CheckpointError
from vgen.io.weights.lora_file import METADATA_KEY, LoraFile
from vgen.io.weights.lora_keys import map_lora_keys, module_names, settled, settled_alpha

MODULES = module_names(2)
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
    assert found.left_out == {
        "name no layer of the transformer": (*other[:2], "odd.diff"),
        "are a part of an update whose other parts are missing": (other[2],),
    }
    said = found.faults() or ""
    assert "3 keys name no layer of the transformer: " in said and "1 keys are a part of an update" in said
    assert "text encoder" in said


def test_reasons_are_true() -> None:
    """A bias, a norm and an ending that is not read are not "no layer"."""
    norm, odd = "transformer.transformer_blocks.0.attn1.norm_q", "transformer.proj_in.oft_blocks"
    keys = [*_pair(f"transformer.{ATTENTION}"), f"transformer.{ATTENTION}.lora_B.bias", f"{norm}.diff"]
    keys += [*_pair(norm), odd, "transformer.proj_in.lokr_w1", "transformer.proj_out.alpha"]
    found = map_lora_keys(keys, MODULES, "x")
    assert found.biases == {ATTENTION: f"transformer.{ATTENTION}.lora_B.bias"}
    assert found.changes == {"transformer_blocks.0.attn1.norm_q": {"diff": f"{norm}.diff"}}
    reasons = {key: reason for reason, some in found.left_out.items() for key in some}
    assert reasons == {
        **dict.fromkeys(_pair(norm), "are for a norm, which takes a difference (.diff, .w_norm) only"),
        odd: "end in nothing that is read",
        "transformer.proj_in.lokr_w1": "are a part of an update whose other parts are missing",
        "transformer.proj_out.alpha": "are a part of an update whose other parts are missing",
    }


@pytest.mark.parametrize(
    "roles",
    [
        {"diff": "diff", "diff_bias": "diff_b"},
        {"diff": "w_norm", "diff_bias": "b_norm"},
        {"down": "lora_down.weight", "up": "lora_up.weight", "alpha": "alpha", "magnitude": "dora_scale"},
        {"down": "lora_A.weight", "up": "lora_B.weight", "magnitude": "lora_magnitude_vector"},
        {"down": "lora_A.a.weight", "up": "lora_B.a.weight", "magnitude": "lora_magnitude_vector.a.weight"},
        {"lokr_w1": "lokr_w1", "lokr_w2_a": "lokr_w2_a", "lokr_w2_b": "lokr_w2_b", "alpha": "alpha"},
        {name: name for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")},
    ],
)
@pytest.mark.parametrize("stem", ["transformer.proj_in", "diffusion_model.patchify_proj", "lycoris_patchify_proj"])
def test_every_kind_of_update(stem, roles) -> None:
    found = map_lora_keys([f"{stem}.{ending}" for ending in roles.values()], MODULES, "x")
    assert found.changes == {"proj_in": {role: f"{stem}.{ending}" for role, ending in roles.items()}}
    assert found.modules == ("proj_in",) and not found.factors and not found.unmatched


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ([], "holds no tensors"),
        (_pair("unet.down.q"), "'unet.down.q.lora_A.weight'.*Expected are keys such as"),
        (_pair("text_encoder.q"), "text encoder alone"),
        (["transformer.proj_in.lora_A.weight"], "fits no layer"),
        (["lora_unet_proj_in.lokr_w1", "lora_unet_proj_in.lokr_w2", "lora_unet_proj_in.lokr_t2"], "Tucker"),
        (["lora_unet_proj_in.lokr_w1"], "fits no layer"),
        ([*_pair("proj_in"), "proj_in.lokr_w1", "proj_in.lokr_w2"], "two kinds of update for the layer 'proj_in'"),
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
    assert settled_alpha("proj_in", 4, {"alpha": 2, "peft_type": "LOKR"}, "x") == 2
    assert settled("r", "proj_in", {"r": 2, "rank_pattern": {"proj_in": 7}}, "x") == 7
    for bad in ({"lora_alpha": "8"}, {"alpha_pattern": {"(a+)+$": 1}}, {"alpha_pattern": [1]}):
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
