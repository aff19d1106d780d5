"""Configs of the public versions, there and back, and what is refused; facts of the published files, no torch."""

from __future__ import annotations

from typing import Any

import pytest

from vgen.errors import CheckpointError
from vgen.io.weights.ltx_configs import (
    generation,
    scheduler_from_original,
    scheduler_to_original,
    stated_facts,
    transformer_facts,
    transformer_from_original,
    transformer_to_original,
    vae_from_original,
    vae_to_original,
)

_OLD, _NEW = ["LTXVideoDownBlock3D"] * 4, ["LTXVideo095DownBlock3D"] * 4
_COMMON = {
    "_class_name": "CausalVideoAutoencoder", "dims": 3, "in_channels": 3, "out_channels": 3, "latent_channels": 128,
    "scaling_factor": 1.0, "norm_layer": "pixel_norm", "patch_size": 4, "latent_log_var": "uniform",
    "use_quant_conv": False, "causal_decoder": False,
}  # fmt: skip


def _res(layers: int, **values: Any) -> list[Any]:
    return ["res_x", {"num_layers": layers, **values}]


_UP = ["compress_all", {"residual": True, "multiplier": 2}]
_FIRST = [
    ["res_x", 4], ["compress_all", 1], ["res_x_y", 1], ["res_x", 3], ["compress_all", 1], ["res_x_y", 1], ["res_x", 3],
    ["compress_all", 1], ["res_x", 3], ["res_x", 4],
]  # fmt: skip
_MULTIPLIER = {"multiplier": 2}
ORIGINAL: dict[str, dict[str, Any]] = {
    "0.9.0": {**_COMMON, "blocks": _FIRST},
    "0.9.1": {
        **_COMMON,
        "encoder_blocks": [[name, {"num_layers": n} if name == "res_x" else {}] for name, n in _FIRST],
        "decoder_blocks": [
            _res(5, inject_noise=True), _UP, _res(6, inject_noise=True), _UP, _res(7, inject_noise=True), _UP,
            _res(8, inject_noise=False),
        ],
        "timestep_conditioning": True,
    },
    "0.9.5": {
        **_COMMON,
        "encoder_blocks": [
            _res(4), ["compress_space_res", _MULTIPLIER], _res(6), ["compress_time_res", _MULTIPLIER], _res(6),
            ["compress_all_res", _MULTIPLIER], _res(2), ["compress_all_res", _MULTIPLIER], _res(2),
        ],
        "decoder_blocks": [_res(5), _UP, _res(5), _UP, _res(5), _UP, _res(5)],
        "timestep_conditioning": True,
    },
}  # fmt: skip
_SHARED = {
    "in_channels": 3, "out_channels": 3, "latent_channels": 128, "patch_size": 4, "patch_size_t": 1,
    "resnet_norm_eps": 1e-6, "scaling_factor": 1.0, "encoder_causal": True, "decoder_causal": False,
    "spatial_compression_ratio": 32, "temporal_compression_ratio": 8,
}  # fmt: skip
DIFFUSERS: dict[str, dict[str, Any]] = {
    "0.9.0": {
        **_SHARED,
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": _OLD,
        "layers_per_block": [4, 3, 3, 3, 4],
        "spatio_temporal_scaling": [True, True, True, False],
        "downsample_type": ["conv"] * 4,
        "decoder_block_out_channels": [128, 256, 512, 512],
        "decoder_layers_per_block": [4, 3, 3, 3, 4],
        "decoder_spatio_temporal_scaling": [True, True, True, False],
        "decoder_inject_noise": [False] * 5,
        "upsample_residual": [False] * 4,
        "upsample_factor": [1] * 4,
        "timestep_conditioning": False,
    },
    "0.9.1": {
        **_SHARED,
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": _OLD,
        "layers_per_block": [4, 3, 3, 3, 4],
        "spatio_temporal_scaling": [True, True, True, False],
        "downsample_type": ["conv"] * 4,
        "decoder_block_out_channels": [256, 512, 1024],
        "decoder_layers_per_block": [5, 6, 7, 8],
        "decoder_spatio_temporal_scaling": [True] * 3,
        "decoder_inject_noise": [True, True, True, False],
        "upsample_residual": [True] * 3,
        "upsample_factor": [2] * 3,
        "timestep_conditioning": True,
    },
    "0.9.5": {
        **_SHARED,
        "block_out_channels": [128, 256, 512, 1024, 2048],
        "down_block_types": _NEW,
        "layers_per_block": [4, 6, 6, 2, 2],
        "spatio_temporal_scaling": [True] * 4,
        "downsample_type": ["spatial", "temporal", "spatiotemporal", "spatiotemporal"],
        "decoder_block_out_channels": [256, 512, 1024],
        "decoder_layers_per_block": [5] * 4,
        "decoder_spatio_temporal_scaling": [True] * 3,
        "decoder_inject_noise": [False] * 4,
        "upsample_residual": [True] * 3,
        "upsample_factor": [2] * 3,
        "timestep_conditioning": True,
    },
}
TRANSFORMER = {
    "_class_name": "Transformer3DModel", "activation_fn": "gelu-approximate", "attention_bias": True,
    "attention_head_dim": 64, "attention_type": "default", "caption_channels": 4096, "cross_attention_dim": 2048,
    "in_channels": 128, "norm_elementwise_affine": False, "norm_eps": 1e-06, "num_attention_heads": 32,
    "num_layers": 28, "out_channels": 128, "qk_norm": "rms_norm", "standardization_norm": "rms_norm",
    "positional_embedding_type": "rope", "positional_embedding_theta": 10000.0,
    "positional_embedding_max_pos": [20, 2048, 2048], "timestep_scale_multiplier": 1000,
}  # fmt: skip


@pytest.mark.parametrize("name", ORIGINAL)
def test_vae_configs(name: str) -> None:
    found = vae_from_original(ORIGINAL[name])
    assert found == DIFFUSERS[name]
    assert generation(found) == name
    written = vae_to_original(found)
    assert vae_from_original(written) == found
    if name == "0.9.5":
        silent = [
            [kind, {"inject_noise": False, **p} if kind == "res_x" else p] for kind, p in written["decoder_blocks"]
        ]
        assert written["encoder_blocks"] == ORIGINAL[name]["encoder_blocks"]
        assert written["decoder_blocks"] == silent


def test_a_vae_config_that_leaves_keys_out() -> None:
    """The folders of 0.9.0 state the encoder only."""
    short = {key: DIFFUSERS["0.9.0"][key] for key in ("block_out_channels", "layers_per_block", "patch_size")}
    assert vae_from_original(vae_to_original(short)) == DIFFUSERS["0.9.0"]


@pytest.mark.parametrize(("head_dim", "layers"), [(64, 28), (128, 48)])
def test_transformer_configs(head_dim: int, layers: int) -> None:
    size = {"attention_head_dim": head_dim, "cross_attention_dim": 32 * head_dim, "num_layers": layers}
    found = transformer_from_original({**TRANSFORMER, **size})
    assert {key: found[key] for key in size} == size
    assert (found["qk_norm"], found["attention_out_bias"]) == ("rms_norm_across_heads", True)
    assert transformer_to_original(found) == {**TRANSFORMER, **size}
    ours = {**TRANSFORMER, "positional_embedding_max_pos": [4, 64, 64]}
    assert transformer_from_original(ours)["rope_base_size"] == [4, 64, 64]


def test_scheduler_configs() -> None:
    shifted = {"num_train_timesteps": 1000, "shifting": "SD3", "base_resolution": None, "target_shift_terminal": 0.1}
    found = scheduler_from_original(shifted)
    assert (found["use_dynamic_shifting"], found["base_shift"], found["max_shift"]) == (True, 0.95, 2.05)
    assert found["shift_terminal"] == 0.1
    plain = scheduler_from_original({"sampler": "LinearQuadratic"})
    assert (plain["use_dynamic_shifting"], plain["shift"], plain["shift_terminal"]) == (False, 1.0, None)
    constant = scheduler_from_original({"sampler": "Constant", "shift": 0.7})
    assert constant["shift"] == pytest.approx(2.0137527)
    for config in (found, plain, constant):
        assert scheduler_from_original(scheduler_to_original(config)) == pytest.approx(config)


_SD3 = {"shifting": "SD3", "target_shift_terminal": 0.1}
_CAUSAL = {"causal_temporal_positioning": True}


@pytest.mark.parametrize(
    ("generation", "transformer", "scheduler", "facts"),
    [
        ("0.9.0", {}, _SD3, {}),
        ("0.9.1", {}, {**_SD3, "sampler": "Uniform"}, {}),
        ("0.9.5", _CAUSAL, {"sampler": "LinearQuadratic"}, {}),
        ("0.9.5", _CAUSAL, _SD3, {}),
        ("0.9.0", _CAUSAL, _SD3, {"causal_coordinates": True}),
        ("0.9.5", {}, {"sampler": "LinearQuadratic"}, {"causal_coordinates": False}),
        ("0.9.5", _CAUSAL, {"shifting": None}, {"schedule": "linspace"}),
        ("0.9.5", _CAUSAL, {"sampler": "Constant", "shift": 0.7}, {"schedule": "linspace"}),
        ("0.9.5", _CAUSAL, {**_SD3, "sampler": "LinearQuadratic"}, {"schedule": "linear_quadratic"}),
        ("0.9.1", {}, {"sampler": "LinearQuadratic"}, {"schedule": "linear_quadratic"}),
    ],
)
def test_what_a_file_states_beyond_its_generation(generation, transformer, scheduler, facts) -> None:
    """As the original code reads it, where absent means Uniform and not causal; and back without a loss."""
    configs = {"transformer": {**TRANSFORMER, **transformer}, "scheduler": scheduler}
    assert stated_facts(configs, generation) == facts
    assert stated_facts({}, generation) == {}
    back = {
        "transformer": {**TRANSFORMER, **transformer_facts(facts, generation)},
        "scheduler": scheduler_to_original(scheduler_from_original(scheduler), facts),
    }
    assert stated_facts(back, generation) == facts
    assert scheduler_from_original(back["scheduler"]) == pytest.approx(scheduler_from_original(scheduler))


@pytest.mark.parametrize(
    ("call", "config", "what"),
    [
        (vae_from_original, {**ORIGINAL["0.9.5"], "norm_layer": "group_norm"}, "norm_layer='group_norm'"),
        (vae_from_original, {**ORIGINAL["0.9.5"], "spatial_padding_mode": "replicate"}, "spatial_padding_mode"),
        (vae_from_original, {**_COMMON, "blocks": [_res(1), ["attn_res_x", {}], _res(1)]}, "block 'attn_res_x'"),
        (vae_from_original, {**_COMMON, "blocks": [_res(1), ["compress_all", 1], ["compress_all", 1], _res(1)]}, "row"),
        (vae_from_original, {**_COMMON, "blocks": 3}, "cannot be read: 3"),
        (vae_from_original, _COMMON, "begin and end with res_x"),
        (vae_to_original, {"decoder_upsample_type": ["temporal"]}, "decoder_upsample_type"),
        (vae_to_original, {"patch_size_t": 2}, "patch_size_t=2: only 1"),
        (vae_to_original, {"block_out_channels": [128, 200, 512, 512]}, "from 128 to 200"),
        (transformer_from_original, {**TRANSFORMER, "qk_norm": None}, "qk_norm=None"),
        (transformer_from_original, {"num_layers": 1}, "lacks num_attention_heads"),
        (transformer_to_original, {"patch_size": 2}, "patch_size=2: only 1"),
        (transformer_from_original, {**TRANSFORMER, "double_self_attention": True}, "double_self_attention=True"),
        (scheduler_from_original, {"shifting": "SimpleDiffusion"}, "shifting='SimpleDiffusion'"),
        (scheduler_from_original, {"sampler": "Cosine"}, "sampler='Cosine'"),
        (scheduler_from_original, {"sampler": "Constant", "shift": 1.0, "shifting": "SD3"}, "sampler='Constant'"),
        (scheduler_from_original, {"sampler": "Constant"}, "a number for shift"),
        (scheduler_to_original, {"use_dynamic_shifting": True, "base_shift": 0.5}, "base_shift=0.5: only 0.95"),
    ],
)
def test_what_has_no_word_is_refused(call: Any, config: dict[str, Any], what: str) -> None:
    with pytest.raises(CheckpointError, match=what):
        call(config)
