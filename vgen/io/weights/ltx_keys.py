"""Names of tensors: those of Lightricks' single files <-> those of diffusers folders, one to one both ways.

A table is made from the model's diffusers config, so that it holds for every width and depth: the original numbers all
blocks of the VAE in a row, diffusers groups them in stages, and which number is what follows from the config.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

CONV_BLOCK, SPACE_TO_DEPTH_BLOCK = "LTXVideoDownBlock3D", "LTXVideo095DownBlock3D"
"""The two kinds of encoder stages, as diffusers' configs name them."""

Pairs = tuple[tuple[str, str], ...]
"""(original, diffusers), each."""


@dataclass(frozen=True)
class KeyTable:
    """A renaming in two parts: how a key begins, then what stands in the rest of it.

    Attributes:
        beginnings: the longest that fits is replaced, once; a key that begins otherwise keeps its beginning.
        parts: replaced in what follows the beginning; each begins and ends with a dot.
    """

    beginnings: Pairs
    parts: Pairs

    def to_diffusers(self, key: str) -> str:
        """An original key, without its component's prefix, as diffusers names it."""
        return _rename(key, self.beginnings, self.parts)

    def to_original(self, key: str) -> str:
        """The inverse of `to_diffusers`."""
        back = tuple((diffusers, original) for original, diffusers in self.beginnings)
        return _rename(key, back, tuple((diffusers, original) for original, diffusers in self.parts))


def _rename(key: str, beginnings: Pairs, parts: Pairs) -> str:
    old, new = max((pair for pair in beginnings if key.startswith(pair[0])), key=_length, default=("", ""))
    rest = f".{key[len(old) :]}"
    for before, after in parts:
        rest = rest.replace(before, after)
    return new + rest[1:]


def _length(pair: tuple[str, str]) -> int:
    return len(pair[0])


TRANSFORMER_KEYS = KeyTable(
    beginnings=(("patchify_proj.", "proj_in."), ("adaln_single.", "time_embed.")),
    parts=((".q_norm.", ".norm_q."), (".k_norm.", ".norm_k.")),
)
"""Of the transformer, the same for all versions and sizes."""

_VAE_WHOLE = (
    ("decoder.last_time_embedder.", "decoder.time_embedder."),
    ("decoder.last_scale_shift_table", "decoder.scale_shift_table"),
    ("per_channel_statistics.mean-of-means", "latents_mean"),
    ("per_channel_statistics.std-of-means", "latents_std"),
)
_VAE_PARTS = (
    (".res_blocks.", ".resnets."),
    (".norm3.norm.", ".norm3."),
    (".conv_shortcut.", ".conv_shortcut.conv."),
)


def transformer_keys(config: Mapping[str, Any]) -> KeyTable:
    """The table of a transformer; `config` does not matter."""
    return TRANSFORMER_KEYS


VAE_DEFAULTS: Mapping[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 128,
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("LTXVideoDownBlock3D",) * 4,
    "decoder_block_out_channels": (128, 256, 512, 512),
    "layers_per_block": (4, 3, 3, 3, 4),
    "decoder_layers_per_block": (4, 3, 3, 3, 4),
    "spatio_temporal_scaling": (True, True, True, False),
    "decoder_spatio_temporal_scaling": (True, True, True, False),
    "decoder_inject_noise": (False,) * 5,
    "downsample_type": ("conv",) * 4,
    "upsample_residual": (False,) * 4,
    "upsample_factor": (1,) * 4,
    "timestep_conditioning": False,
    "patch_size": 4,
    "patch_size_t": 1,
    "resnet_norm_eps": 1e-6,
    "scaling_factor": 1.0,
    "encoder_causal": True,
    "decoder_causal": False,
    "spatial_compression_ratio": None,
    "temporal_compression_ratio": None,
}
"""What a diffusers VAE config that leaves a key out means by it; the folders of 0.9.0 leave out half of them."""


def vae_keys(config: Mapping[str, Any]) -> KeyTable:
    """The table of a VAE.

    Args:
        config: of diffusers' AutoencoderKLLTXVideo or of CausalVideoVAE, as stored in the folder.
    """
    full = {**VAE_DEFAULTS, **config}
    numbered = [(f"encoder.down_blocks.{n}.", f"encoder.{name}.") for n, name in enumerate(_encoder_blocks(full))]
    numbered += [(f"decoder.up_blocks.{n}.", f"decoder.{name}.") for n, name in enumerate(_decoder_blocks(full))]
    return KeyTable((*numbered, *_VAE_WHOLE), _VAE_PARTS)


def _encoder_blocks(config: Mapping[str, Any]) -> list[str]:
    """What diffusers calls the original's down_blocks.0, .1, .2 ..."""
    names = []
    for i, (wide_in, wide_out) in enumerate(pairwise(encoder_widths(config))):
        names.append(f"down_blocks.{i}")
        if config["spatio_temporal_scaling"][i]:
            names.append(f"down_blocks.{i}.downsamplers.0")
        if config["down_block_types"][i] == CONV_BLOCK and wide_in != wide_out:
            names.append(f"down_blocks.{i}.conv_out")
    return [*names, "mid_block"]


def encoder_widths(config: Mapping[str, Any]) -> list[int]:
    """Channels before each stage of an encoder, and after the last."""
    widths = list(config["block_out_channels"])
    return [*widths, widths[-1]] if config["down_block_types"][-1] == CONV_BLOCK else widths


def _decoder_blocks(config: Mapping[str, Any]) -> list[str]:
    """What diffusers calls the original's up_blocks.0, .1, .2 ..."""
    widths, factors = config["decoder_block_out_channels"], config["upsample_factor"]
    names, width = ["mid_block"], widths[-1]
    for n, i in enumerate(reversed(range(len(widths)))):
        wide_in, wide_out = width // factors[i], widths[i] // factors[i]
        if wide_in != wide_out:
            names.append(f"up_blocks.{n}.conv_in")
        if config["decoder_spatio_temporal_scaling"][i]:
            names.append(f"up_blocks.{n}.upsamplers.0")
        names.append(f"up_blocks.{n}")
        width = wide_out
    return names
