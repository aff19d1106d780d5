"""What the configs of LTX-Video mean: those in the metadata of single files <-> those of diffusers folders.

The original describes its VAE as a list of blocks from high to low resolution, diffusers as stages. Whatever one of the
two cannot say is refused with a sentence; nothing is dropped in silence.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from vgen.errors import CheckpointError
from vgen.io.weights.ltx_keys import CONV_BLOCK, SPACE_TO_DEPTH_BLOCK, VAE_DEFAULTS, encoder_widths

Config = dict[str, Any]

_REDUCTIONS = {"compress_space_res": "spatial", "compress_time_res": "temporal", "compress_all_res": "spatiotemporal"}
BASE_CHANNELS = 128
"""Width of the VAE's first and last convolution where a config does not say it."""
ORIGINAL_VAE: Mapping[str, Any] = {
    "dims": 3, "norm_layer": "pixel_norm", "latent_log_var": "uniform", "use_quant_conv": False
}  # fmt: skip
"""What the original's config of every VAE of LTX-Video says."""
_SHIFT_BY_TOKENS = {"base_shift": 0.95, "max_shift": 2.05, "base_image_seq_len": 1024, "max_image_seq_len": 4096}
_SAME_TRANSFORMER_KEYS = (
    "num_attention_heads", "attention_head_dim", "in_channels", "out_channels", "num_layers", "cross_attention_dim",
    "caption_channels", "attention_bias", "activation_fn", "norm_elementwise_affine", "norm_eps",
)  # fmt: skip
_TRANSFORMER_DEFAULTS = {
    "in_channels": 128, "out_channels": 128, "patch_size": 1, "patch_size_t": 1, "num_attention_heads": 32,
    "attention_head_dim": 64, "cross_attention_dim": 2048, "num_layers": 28, "activation_fn": "gelu-approximate",
    "qk_norm": "rms_norm_across_heads", "norm_elementwise_affine": False, "norm_eps": 1e-6, "caption_channels": 4096,
    "attention_bias": True, "attention_out_bias": True, "rope_theta": 10000.0, "rope_base_size": (20, 2048, 2048),
}  # fmt: skip


def _demand(what: str, config: Mapping[str, Any], needed: Mapping[str, Any]) -> None:
    """Refuse a config that says something else than the one thing that can be carried over."""
    for key, value in needed.items():
        found = config.get(key, value)
        if found != value and not (isinstance(found, (list, tuple)) and list(found) == list(value)):
            raise CheckpointError(
                f"the {what} config has {key}={found!r}: only {value!r} is part of LTX-Video 0.9.0 to 0.9.8, "
                "and nothing else can be converted."
            )


def transformer_from_original(config: Mapping[str, Any]) -> Config:
    """The diffusers config of an original transformer config.

    Raises:
        CheckpointError: a key is missing or says what LTX-Video's transformers are not.
    """
    needed: Config = {"qk_norm": "rms_norm", "standardization_norm": "rms_norm", "positional_embedding_type": "rope"}
    needed |= {"adaptive_norm": "single_scale_shift", "timestep_scale_multiplier": 1000, "attention_type": "default"}
    needed |= {"only_cross_attention": False, "double_self_attention": False}
    _demand("transformer", config, needed)
    missing = [key for key in _SAME_TRANSFORMER_KEYS if key not in config and key != "out_channels"]
    if missing:
        raise CheckpointError(f"the transformer config in the metadata lacks {', '.join(missing)}.")
    found = {key: config[key] for key in _SAME_TRANSFORMER_KEYS if key in config}
    found |= {"qk_norm": "rms_norm_across_heads", "attention_out_bias": True, "patch_size": 1, "patch_size_t": 1}
    found["out_channels"] = config.get("out_channels") or config["in_channels"]
    theta, size = config.get("positional_embedding_theta"), config.get("positional_embedding_max_pos")
    if theta is not None and theta != _TRANSFORMER_DEFAULTS["rope_theta"]:
        found["rope_theta"] = theta
    if size is not None and tuple(size) != _TRANSFORMER_DEFAULTS["rope_base_size"]:
        found["rope_base_size"] = list(size)
    return found


def transformer_to_original(config: Mapping[str, Any]) -> Config:
    """The original config of a diffusers transformer config.

    Raises:
        CheckpointError: the original has no word for something in it.
    """
    full = {**_TRANSFORMER_DEFAULTS, **config}
    needed = {"qk_norm": "rms_norm_across_heads", "attention_out_bias": True, "patch_size": 1, "patch_size_t": 1}
    _demand("transformer", full, needed)
    return {
        "_class_name": "Transformer3DModel",
        **{key: full[key] for key in _SAME_TRANSFORMER_KEYS},
        "out_channels": full["out_channels"] or full["in_channels"],
        "attention_type": "default",
        "qk_norm": "rms_norm",
        "standardization_norm": "rms_norm",
        "positional_embedding_type": "rope",
        "positional_embedding_theta": full["rope_theta"],
        "positional_embedding_max_pos": list(full["rope_base_size"]),
        "timestep_scale_multiplier": 1000,
    }


@dataclass
class _Stage:
    """A stage of the VAE: its blocks, width, and how its resolution changes towards the latents."""

    layers: int
    width: int
    inject_noise: bool = False
    change: str | None = None
    factor: int = 1
    residual: bool = False


def _read_blocks(config: Mapping[str, Any], key: str) -> list[tuple[str, Mapping[str, Any]]]:
    blocks = config.get(key, config.get("blocks"))
    try:
        read: list[tuple[str, Mapping[str, Any]]] = [
            (name, {"num_layers": p} if isinstance(p, int) else dict(p)) for name, p in blocks or ()
        ]
    except (TypeError, ValueError):
        raise CheckpointError(
            f"the VAE config in the metadata has {key} that cannot be read: {blocks!r:.200}."
        ) from None
    if len(read) < 2 or read[0][0] != "res_x" or read[-1][0] != "res_x":
        raise CheckpointError(f"the VAE config in the metadata has no {key} that begin and end with res_x.")
    return read


def _change(stage: _Stage, kind: str, name: str) -> None:
    if stage.change is not None:
        raise CheckpointError(
            f"the VAE config in the metadata has two blocks in a row like {name!r}: res_x must be between."
        )
    stage.change = kind


def _encoder_stages(blocks: Sequence[tuple[str, Mapping[str, Any]]], width: int) -> tuple[list[_Stage], int]:
    """Stages (the last is the middle) and the width at the end."""
    stages: list[_Stage] = []
    for name, values in blocks:
        if name == "res_x":
            stages.append(_Stage(int(values["num_layers"]), width))
        elif name == "compress_all" or name in _REDUCTIONS:
            _change(stages[-1], _REDUCTIONS.get(name, "conv"), name)
            width *= int(values.get("multiplier", 2)) if name in _REDUCTIONS else 1
        elif name == "res_x_y":
            width *= int(values.get("multiplier", 2))
        else:
            raise CheckpointError(f"the VAE config in the metadata has the encoder block {name!r}, which is not known.")
    return stages, width


def _decoder_stages(blocks: Sequence[tuple[str, Mapping[str, Any]]], width: int) -> tuple[list[_Stage], int]:
    stages: list[_Stage] = []
    for name, values in blocks:
        if name == "res_x":
            stages.append(_Stage(int(values["num_layers"]), width, bool(values.get("inject_noise", False))))
        elif name == "compress_all":
            _change(stages[-1], "spatiotemporal", name)
            stages[-1].factor = int(values.get("multiplier", 1))
            stages[-1].residual = bool(values.get("residual", False))
            width *= stages[-1].factor
        elif name == "res_x_y":
            width *= int(values.get("multiplier", 2))
        else:
            raise CheckpointError(f"the VAE config in the metadata has the decoder block {name!r}, which is not known.")
    return stages, width


def vae_from_original(config: Mapping[str, Any]) -> Config:
    """The diffusers config of an original VAE config (its lists of blocks, old or new style).

    Raises:
        CheckpointError: a block that is not known, or a setting that LTX-Video's VAEs do not have.
    """
    _demand("VAE", config, {**ORIGINAL_VAE, "normalize_latent_channels": False, "spatial_padding_mode": "zeros"})
    base = int(config.get("encoder_base_channels", BASE_CHANNELS))
    (*down, middle), end = _encoder_stages(_read_blocks(config, "encoder_blocks"), base)
    base = int(config.get("decoder_base_channels", BASE_CHANNELS))
    (*up, bottom), _ = _decoder_stages(_read_blocks(config, "decoder_blocks"), base)
    kinds = [CONV_BLOCK if stage.change in (None, "conv") else SPACE_TO_DEPTH_BLOCK for stage in down]
    patch = int(config.get("patch_size", 1))
    return {
        "in_channels": config.get("in_channels", 3),
        "out_channels": config.get("out_channels", 3),
        "latent_channels": config["latent_channels"],
        "block_out_channels": [stage.width for stage in down] + ([end] if kinds[-1] != CONV_BLOCK else []),
        "down_block_types": kinds,
        "layers_per_block": [stage.layers for stage in (*down, middle)],
        "spatio_temporal_scaling": [stage.change is not None for stage in down],
        "downsample_type": [stage.change or "conv" for stage in down],
        "decoder_block_out_channels": [stage.width * stage.factor for stage in up],
        "decoder_layers_per_block": [stage.layers for stage in (*up, bottom)],
        "decoder_spatio_temporal_scaling": [stage.change is not None for stage in up],
        "decoder_inject_noise": [stage.inject_noise for stage in (*up, bottom)],
        "upsample_residual": [stage.residual for stage in up],
        "upsample_factor": [stage.factor for stage in up],
        "timestep_conditioning": bool(config.get("timestep_conditioning", False)),
        "patch_size": patch,
        "patch_size_t": 1,
        "resnet_norm_eps": 1e-6,
        "scaling_factor": config.get("scaling_factor", 1.0),
        "encoder_causal": True,
        "decoder_causal": bool(config.get("causal_decoder", False)),
        "spatial_compression_ratio": patch * 2 ** sum(stage.change not in (None, "temporal") for stage in down),
        "temporal_compression_ratio": 2 ** sum(stage.change not in (None, "spatial") for stage in down),
    }


def vae_to_original(config: Mapping[str, Any]) -> Config:
    """The original config of a diffusers VAE config.

    Raises:
        CheckpointError: the original has no word for something in it.
    """
    full = {**VAE_DEFAULTS, **config}
    _demand("VAE", full, {"encoder_causal": True, "patch_size_t": 1, "resnet_norm_eps": 1e-6})
    if set(full.get("decoder_upsample_type") or ()) - {"spatiotemporal"}:
        kinds = full["decoder_upsample_type"]
        raise CheckpointError(f"decoder_upsample_type={kinds!r} has no word in a single file of LTX-Video.")
    bases = {"encoder_base_channels": full["block_out_channels"][0]}
    bases["decoder_base_channels"] = full["decoder_block_out_channels"][0] // full["upsample_factor"][0]
    return {
        "_class_name": "CausalVideoAutoencoder",
        "dims": 3,
        "in_channels": full["in_channels"],
        "out_channels": full["out_channels"],
        "latent_channels": full["latent_channels"],
        "encoder_blocks": list(_list_encoder(full)),
        "decoder_blocks": list(_list_decoder(full)),
        "scaling_factor": full["scaling_factor"],
        "norm_layer": "pixel_norm",
        "patch_size": full["patch_size"],
        "latent_log_var": "uniform",
        "use_quant_conv": False,
        "causal_decoder": full["decoder_causal"],
        "timestep_conditioning": full["timestep_conditioning"],
        **{key: width for key, width in bases.items() if width != BASE_CHANNELS},
    }


def _multiple(wide: int, narrow: int) -> int:
    if wide % narrow:
        raise CheckpointError(
            f"a VAE whose width goes from {narrow} to {wide} has no word in a single file: no multiple."
        )
    return wide // narrow


def _list_encoder(config: Mapping[str, Any]) -> Iterable[list[Any]]:
    widths, names = encoder_widths(config), {kind: name for name, kind in _REDUCTIONS.items()}
    for i in range(len(widths) - 1):
        yield ["res_x", {"num_layers": config["layers_per_block"][i]}]
        multiplier = _multiple(widths[i + 1], widths[i])
        if config["down_block_types"][i] != CONV_BLOCK:
            if not config["spatio_temporal_scaling"][i]:
                raise CheckpointError(f"stage {i} of the VAE's encoder keeps its resolution: no word in a single file.")
            yield [names[config["downsample_type"][i]], {"multiplier": multiplier}]
            continue
        if config["spatio_temporal_scaling"][i]:
            yield ["compress_all", {}]
        if multiplier > 1:
            yield ["res_x_y", {"multiplier": multiplier}]
    yield ["res_x", {"num_layers": config["layers_per_block"][-1]}]


def _list_decoder(config: Mapping[str, Any]) -> Iterable[list[Any]]:
    widths, factors = config["decoder_block_out_channels"], config["upsample_factor"]
    layers, noise = config["decoder_layers_per_block"], config["decoder_inject_noise"]
    last = len(widths) - 1
    for i in range(last + 1):
        yield ["res_x", {"num_layers": layers[i], "inject_noise": bool(noise[i])}]
        if config["decoder_spatio_temporal_scaling"][i]:
            yield ["compress_all", {"residual": bool(config["upsample_residual"][i]), "multiplier": factors[i]}]
        comes_in = widths[i + 1] // factors[i + 1] if i < last else widths[last]
        multiplier = _multiple(comes_in, widths[i])
        if multiplier > 1:
            yield ["res_x_y", {"multiplier": multiplier}]
    yield ["res_x", {"num_layers": layers[-1], "inject_noise": bool(noise[-1])}]


def scheduler_from_original(config: Mapping[str, Any]) -> Config:
    """The config of diffusers' FlowMatchEulerDiscreteScheduler for an original scheduler config.

    "SD3" shifts by the number of tokens and stretches to a terminal; without it sigmas are used as a pipeline makes
    them (linear-quadratic from 0.9.5 on).

    Raises:
        CheckpointError: a shift or a sampler that diffusers' scheduler does not have.
    """
    shifting, sampler = config.get("shifting"), config.get("sampler", "Uniform")
    if shifting not in (None, "SD3"):
        raise CheckpointError(f"the scheduler config in the metadata has shifting={shifting!r}: use SD3 or none.")
    if sampler not in ("Uniform", "LinearQuadratic", "Constant"):
        raise CheckpointError(
            f"the scheduler config in the metadata has sampler={sampler!r}: Uniform, LinearQuadratic and Constant are "
            "known."
        )
    constant = sampler == "Constant"
    dynamic = shifting == "SD3"
    if constant and (dynamic or not isinstance(config.get("shift"), (int, float))):
        raise CheckpointError(
            f"the scheduler config in the metadata has sampler='Constant' with shift={config.get('shift')!r} and "
            f"shifting={shifting!r}: a number for shift, and no shifting, are needed."
        )
    return {
        "num_train_timesteps": config.get("num_train_timesteps", 1000),
        "shift": math.exp(config["shift"]) if constant else 1.0,
        "use_dynamic_shifting": dynamic,
        **(_SHIFT_BY_TOKENS if dynamic else {}),
        "shift_terminal": config.get("target_shift_terminal") if dynamic else None,
    }


def stated_facts(configs: Mapping[str, Any], generation: str) -> Config:
    """What a single file's configs say that neither its generation nor the two other configs do.

    Args:
        configs: of the file, by component.
        generation: of its VAE, see `generation`.
    Returns:
        `causal_coordinates`, whether the first latent frame counts as one pixel frame, where that is not so from 0.9.5
        on and otherwise before it; `schedule`, "linspace" or "linear_quadratic", the sigmas before any shift, where
        they are not the one with a shift by tokens and the other without. Without a config nothing is stated.
    """
    transformer, scheduler = configs.get("transformer"), configs.get("scheduler")
    later = generation not in ("0.9.0", "0.9.1")
    found: Config = {}
    if transformer:
        causal = bool(transformer.get("causal_temporal_positioning", False))
        found = {"causal_coordinates": causal} if causal != later else {}
    if scheduler:
        quadratic, shifted = scheduler.get("sampler") == "LinearQuadratic", scheduler.get("shifting") == "SD3"
        if quadratic == shifted or not (shifted or later):
            found["schedule"] = "linear_quadratic" if quadratic else "linspace"
    return found


def transformer_facts(facts: Mapping[str, Any], generation: str) -> Config:
    """What `stated_facts` took from a transformer's config, as the original says it."""
    later = generation not in ("0.9.0", "0.9.1")
    return {"causal_temporal_positioning": bool(facts.get("causal_coordinates", later))}


def scheduler_to_original(config: Mapping[str, Any], facts: Mapping[str, Any] = MappingProxyType({})) -> Config:
    """The original config of a diffusers scheduler config.

    Args:
        config: of diffusers' FlowMatchEulerDiscreteScheduler.
        facts: see `stated_facts`.
    Raises:
        CheckpointError: the original has no word for something in it.
    """
    found: Config = {"_class_name": "RectifiedFlowScheduler"}
    found["num_train_timesteps"] = config.get("num_train_timesteps", 1000)
    if config.get("use_dynamic_shifting"):
        _demand(
            "scheduler", {"base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256, **config}, _SHIFT_BY_TOKENS
        )
        sampler = {"sampler": "LinearQuadratic"} if facts.get("schedule") == "linear_quadratic" else {}
        return {**found, **sampler, "shifting": "SD3", "target_shift_terminal": config.get("shift_terminal")}
    shift = config.get("shift", 1.0)
    if shift != 1.0:
        return {**found, "shifting": None, "sampler": "Constant", "shift": math.log(shift)}
    sampler_name = "Uniform" if facts.get("schedule") == "linspace" else "LinearQuadratic"
    return {**found, "shifting": None, "sampler": sampler_name}


def generation(vae: Mapping[str, Any]) -> str:
    """Which generation a diffusers VAE config is of: 0.9.0, 0.9.1 or 0.9.5 (all later versions have that VAE)."""
    full = {**VAE_DEFAULTS, **vae}
    if full["down_block_types"][0] == SPACE_TO_DEPTH_BLOCK:
        return "0.9.5"
    return "0.9.1" if full["timestep_conditioning"] else "0.9.0"
