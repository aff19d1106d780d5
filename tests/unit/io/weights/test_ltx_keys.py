"""The tables cover every tensor of the models at their public sizes, one to one; no memory is taken for them."""

from __future__ import annotations

import inspect

import pytest

from vgen.io.weights.ltx_configs import transformer_from_original, vae_from_original, vae_to_original
from vgen.io.weights.ltx_keys import VAE_DEFAULTS, vae_keys
from vgen.io.weights.ltx_sniff import sniff_transformer, sniff_vae
from vgen.io.weights.single_file import COMPONENTS
from vgen.models import CausalVideoVAE
from vgen.models.empty import model_shapes

_UP = ["compress_all", {"residual": True, "multiplier": 2}]
_FIRST = [["res_x", 4], ["compress_all", 1], ["res_x_y", 1], ["res_x", 3], ["compress_all", 1], ["res_x_y", 1]]
_FIRST += [["res_x", 3], ["compress_all", 1], ["res_x", 3], ["res_x", 4]]
_LATER = [["res_x", 4], ["compress_space_res", {}], ["res_x", 6], ["compress_time_res", {}], ["res_x", 6]]
_LATER += [["compress_all_res", {}], ["res_x", 2], ["compress_all_res", {}], ["res_x", 2]]
_NOISY = [["res_x", {"num_layers": n, "inject_noise": n < 8}] for n in (5, 6, 7, 8)]
BLOCKS = {
    "0.9.0": (_FIRST, _FIRST),
    "0.9.1": (_FIRST, [_NOISY[0], _UP, _NOISY[1], _UP, _NOISY[2], _UP, _NOISY[3]]),
    "0.9.5": (_LATER, [["res_x", 5], _UP, ["res_x", 5], _UP, ["res_x", 5], _UP, ["res_x", 5]]),
}
MILLIONS = {"0.9.0": 419, "0.9.1": 935, "0.9.5": 1247}
NAMES = {
    "0.9.0": {
        "encoder.down_blocks.2.norm3.norm.weight": "encoder.down_blocks.0.conv_out.norm3.weight",
        "encoder.down_blocks.4.conv.bias": "encoder.down_blocks.1.downsamplers.0.conv.bias",
        "encoder.down_blocks.9.res_blocks.3.conv2.conv.weight": "encoder.mid_block.resnets.3.conv2.conv.weight",
        "decoder.up_blocks.1.res_blocks.0.conv1.conv.bias": "decoder.up_blocks.0.resnets.0.conv1.conv.bias",
        "decoder.up_blocks.4.conv_shortcut.weight": "decoder.up_blocks.2.conv_in.conv_shortcut.conv.weight",
        "decoder.up_blocks.8.conv.conv.weight": "decoder.up_blocks.3.upsamplers.0.conv.conv.weight",
        "decoder.up_blocks.9.res_blocks.3.conv1.conv.weight": "decoder.up_blocks.3.resnets.3.conv1.conv.weight",
        "per_channel_statistics.mean-of-means": "latents_mean",
        "per_channel_statistics.std-of-means": "latents_std",
    },
    "0.9.1": {
        "decoder.up_blocks.0.time_embedder.timestep_embedder.linear_1.weight": (
            "decoder.mid_block.time_embedder.timestep_embedder.linear_1.weight"
        ),
        "decoder.up_blocks.2.res_blocks.0.per_channel_scale2": "decoder.up_blocks.0.resnets.0.per_channel_scale2",
        "decoder.up_blocks.5.conv.conv.weight": "decoder.up_blocks.2.upsamplers.0.conv.conv.weight",
        "decoder.last_time_embedder.timestep_embedder.linear_2.bias": (
            "decoder.time_embedder.timestep_embedder.linear_2.bias"
        ),
        "decoder.last_scale_shift_table": "decoder.scale_shift_table",
        "decoder.timestep_scale_multiplier": "decoder.timestep_scale_multiplier",
    },
    "0.9.5": {
        "encoder.down_blocks.1.conv.conv.weight": "encoder.down_blocks.0.downsamplers.0.conv.conv.weight",
        "encoder.down_blocks.6.res_blocks.1.conv1.conv.bias": "encoder.down_blocks.3.resnets.1.conv1.conv.bias",
        "encoder.down_blocks.8.res_blocks.0.conv1.conv.bias": "encoder.mid_block.resnets.0.conv1.conv.bias",
        "decoder.up_blocks.6.res_blocks.4.scale_shift_table": "decoder.up_blocks.2.resnets.4.scale_shift_table",
    },
}


def _vae(version: str) -> dict:
    encoder, decoder = BLOCKS[version]
    original = {"latent_channels": 128, "patch_size": 4, "encoder_blocks": encoder, "decoder_blocks": decoder}
    return vae_from_original({**original, "timestep_conditioning": version != "0.9.0"})


def _check(shapes: dict, table) -> dict:
    originals = {table.to_original(key): shape for key, shape in shapes.items()}
    assert len(originals) == len(shapes), "two tensors have one name"
    assert {table.to_diffusers(key) for key in originals} == shapes.keys()
    assert all(table.to_original(table.to_diffusers(key)) == key for key in originals)
    return originals


@pytest.mark.parametrize("version", BLOCKS)
def test_vae(version: str) -> None:
    config = _vae(version)
    shapes, table = model_shapes("CausalVideoVAE", config), vae_keys(config)
    originals = _check(shapes, table)
    millions = sum(_volume(shape) for key, shape in shapes.items() if not key.startswith("latents")) / 1e6
    assert round(millions) == MILLIONS[version]
    assert {key: table.to_diffusers(key) for key in NAMES[version]} == NAMES[version]
    assert NAMES[version].keys() <= originals.keys()
    assert vae_from_original(sniff_vae(originals)) == config
    assert vae_from_original(vae_to_original(config)) == config


@pytest.mark.parametrize(("head_dim", "layers", "millions"), [(64, 28, 1923), (128, 48, 13043)])
def test_transformer(head_dim: int, layers: int, millions: int) -> None:
    config = {"attention_head_dim": head_dim, "cross_attention_dim": 32 * head_dim, "num_layers": layers}
    shapes = model_shapes("VideoDiT", config)
    originals = _check(shapes, COMPONENTS["transformer"].table(config))
    assert round(sum(map(_volume, shapes.values())) / 1e6) == millions
    expected = {"patchify_proj.bias", "adaln_single.emb.timestep_embedder.linear_1.weight", "adaln_single.linear.bias"}
    expected |= {f"transformer_blocks.{layers - 1}.attn2.{name}" for name in ("q_norm.weight", "k_norm.weight")}
    expected |= {"transformer_blocks.0.attn1.to_out.0.bias", "scale_shift_table", "caption_projection.linear_2.bias"}
    assert expected <= originals.keys()
    sniffed = transformer_from_original(sniff_transformer(originals))
    assert {key: sniffed[key] for key in config} == config


def _volume(shape: tuple[int, ...]) -> int:
    volume = 1
    for size in shape:
        volume *= size
    return volume


def test_defaults_are_the_models() -> None:
    parameters = inspect.signature(CausalVideoVAE.__init__).parameters
    assert {key: parameters[key].default for key in VAE_DEFAULTS} == VAE_DEFAULTS
