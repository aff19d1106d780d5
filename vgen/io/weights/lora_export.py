"""A LoRA under the names of others: diffusers', Lightricks' original ones, or kohya's as ComfyUI reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from vgen.errors import RequestError
from vgen.io.weights.lora_file import METADATA_KEY
from vgen.io.weights.ltx_keys import TRANSFORMER_KEYS

LoraFormat = Literal["diffusers", "comfy", "original"]


def lora_tensors(
    factors: Mapping[str, tuple[Tensor, Tensor]], alphas: Mapping[str, float], layout: str, config: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a LoRA file.

    Args:
        factors: down [r, in] and up [out, r] by module of our transformer.
        alphas: by module; alpha / r is the scale.
        layout: "diffusers" (peft's configuration in the metadata), "comfy" (an alpha key for each layer), or "original"
            (no place for alphas: the scale is multiplied into `up`, in float32).
        config: of peft.
    Raises:
        RequestError: unknown layout.
    """
    if layout not in get_args(LoraFormat):
        raise RequestError(f"format={layout!r} is not known: use {', '.join(get_args(LoraFormat))}.")
    tensors: dict[str, Tensor] = {}
    metadata = {"format": "pt"}
    for module, (down, up) in factors.items():
        original = TRANSFORMER_KEYS.to_original(f"{module}.")[:-1]
        if layout == "diffusers":
            stem, ends = f"transformer.{module}", ("lora_A", "lora_B")
        elif layout == "comfy":
            stem, ends = "lora_unet_" + original.replace(".", "_"), ("lora_down", "lora_up")
            tensors[f"{stem}.alpha"] = torch.tensor(float(alphas[module]))
        else:
            stem, ends = f"diffusion_model.{original}", ("lora_A", "lora_B")
            scale = alphas[module] / down.shape[0]
            up = up if scale == 1 else (up.float() * scale).to(up.dtype)
        tensors[f"{stem}.{ends[0]}.weight"], tensors[f"{stem}.{ends[1]}.weight"] = down, up
    if layout == "diffusers":
        about = {f"transformer.{key}": sorted(v) if isinstance(v, set) else v for key, v in config.items()}
        metadata[METADATA_KEY] = json.dumps(about, sort_keys=True)
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}, metadata
