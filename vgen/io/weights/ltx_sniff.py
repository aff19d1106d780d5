"""What a single file without a config in its metadata holds, read off the names and shapes of its tensors.

Shapes tell everything but the number of heads, which is 32 in all public transformers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from vgen.errors import CheckpointError
from vgen.io.weights.ltx_configs import BASE_CHANNELS, ORIGINAL_VAE, transformer_to_original

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes by original key, without the component's prefix."""

NUM_HEADS = 32
_STRIDE_NAMES = {4: "compress_space_res", 2: "compress_time_res", 8: "compress_all_res"}


def sniff_transformer(shapes: Shapes) -> dict[str, Any]:
    """The original config of a transformer.

    Raises:
        CheckpointError: the tensors are not those of an LTX-Video transformer.
    """
    hidden, in_channels = _shape(shapes, "patchify_proj.weight", 2)
    if hidden % NUM_HEADS:
        raise CheckpointError(
            f"a hidden size of {hidden} is no multiple of the {NUM_HEADS} heads of public LTX-Video transformers, and "
            "the file has no config in its metadata: the number of heads is unknown."
        )
    return transformer_to_original({
        "num_attention_heads": NUM_HEADS,
        "attention_head_dim": hidden // NUM_HEADS,
        "in_channels": in_channels,
        "out_channels": _shape(shapes, "proj_out.weight", 2)[0],
        "num_layers": _count(shapes, r"transformer_blocks\.(\d+)\."),
        "cross_attention_dim": hidden,
        "caption_channels": _shape(shapes, "caption_projection.linear_1.weight", 2)[1],
        "attention_bias": "transformer_blocks.0.attn1.to_q.bias" in shapes,
    })  # fmt: skip


def sniff_vae(shapes: Shapes) -> dict[str, Any]:
    """The original config of a VAE of any of the three generations.

    Raises:
        CheckpointError: the tensors are not those of an LTX-Video VAE.
    """
    base, patched = _shape(shapes, "encoder.conv_in.conv.weight", 5)[:2]
    encoder_blocks = _encoder_blocks(shapes, base)
    decoder_blocks = _decoder_blocks(shapes)
    bottom = _shape(shapes, "decoder.conv_in.conv.weight", 5)
    out_patched, decoder_base = _shape(shapes, "decoder.conv_out.conv.weight", 5)[:2]
    side = round((patched / 3) ** 0.5)
    found: dict[str, Any] = {
        **ORIGINAL_VAE,
        "in_channels": patched // side**2,
        "out_channels": out_patched // side**2,
        "latent_channels": bottom[1],
        "encoder_blocks": encoder_blocks,
        "decoder_blocks": decoder_blocks,
        "scaling_factor": 1.0,
        "patch_size": side,
        "causal_decoder": False,
        "timestep_conditioning": "decoder.last_scale_shift_table" in shapes,
    }
    widths = {"encoder_base_channels": base, "decoder_base_channels": decoder_base}
    return {**found, **{key: width for key, width in widths.items() if width != BASE_CHANNELS}}


def sniff_scheduler(generation: str) -> dict[str, Any]:
    """The original scheduler config that came with a generation: 0.9.0, 0.9.1 or 0.9.5."""
    later = generation not in ("0.9.0", "0.9.1")
    schedule = {"sampler": "LinearQuadratic"} if later else {"shifting": "SD3", "target_shift_terminal": 0.1}
    return {"_class_name": "RectifiedFlowScheduler", "num_train_timesteps": 1000, **schedule}


def _encoder_blocks(shapes: Shapes, width: int) -> list[list[Any]]:
    blocks: list[list[Any]] = []
    for prefix, layers in _numbered(shapes, "encoder.down_blocks"):
        if layers:
            blocks.append(["res_x", {"num_layers": layers}])
        elif f"{prefix}.conv.weight" in shapes:
            blocks.append(["compress_all", {}])
        elif f"{prefix}.conv.conv.weight" in shapes:
            out = _width_after(shapes, prefix)
            volume = out // _shape(shapes, f"{prefix}.conv.conv.weight", 5)[0]
            if volume not in _STRIDE_NAMES:
                raise CheckpointError(f"{prefix} reduces by {volume}: no encoder of LTX-Video does.")
            blocks.append([_STRIDE_NAMES[volume], {"multiplier": out // width}])
            width = out
        else:
            out = _shape(shapes, f"{prefix}.conv1.conv.weight", 5)[0]
            blocks.append(["res_x_y", {"multiplier": out // width}])
            width = out
    return blocks


def _width_after(shapes: Shapes, prefix: str) -> int:
    """Channels that come out of a block of the encoder, known by the block that follows."""
    stem, _, number = prefix.rpartition(".")
    following = f"{stem}.{int(number) + 1}.res_blocks.0.conv1.conv.weight"
    return _shape(shapes, following if following in shapes else "encoder.conv_out.conv.weight", 5)[1]


def _decoder_blocks(shapes: Shapes) -> list[list[Any]]:
    """From high to low resolution, the other way round than they are numbered."""
    blocks: list[list[Any]] = []
    for prefix, layers in _numbered(shapes, "decoder.up_blocks"):
        if layers:
            noisy = f"{prefix}.res_blocks.0.per_channel_scale1" in shapes
            blocks.append(["res_x", {"num_layers": layers, "inject_noise": noisy}])
        elif f"{prefix}.conv.conv.weight" in shapes:
            out, into = _shape(shapes, f"{prefix}.conv.conv.weight", 5)[:2]
            factor = 8 * into // out
            blocks.append(["compress_all", {"residual": factor > 1, "multiplier": factor}])
        else:
            out, into = _shape(shapes, f"{prefix}.conv1.conv.weight", 5)[:2]
            blocks.append(["res_x_y", {"multiplier": into // out}])
    return blocks[::-1]


def _numbered(shapes: Shapes, stem: str) -> list[tuple[str, int]]:
    """Each block's prefix, and how many residual blocks it is made of (0: it is something else)."""
    count = _count(shapes, rf"{re.escape(stem)}\.(\d+)\.")
    prefixes = [f"{stem}.{n}" for n in range(count)]
    return [(prefix, _count(shapes, rf"{re.escape(prefix)}\.res_blocks\.(\d+)\.")) for prefix in prefixes]


def _count(shapes: Shapes, pattern: str) -> int:
    found = (re.match(pattern, key) for key in shapes)
    return max((int(match[1]) + 1 for match in found if match), default=0)


def _shape(shapes: Shapes, key: str, ndim: int) -> tuple[int, ...]:
    if key not in shapes:
        raise CheckpointError(f"{key} is missing, and the file has no config in its metadata that could say more.")
    if len(shapes[key]) != ndim:
        raise CheckpointError(f"{key} has shape {list(shapes[key])}: {ndim} dimensions were expected.")
    return shapes[key]
