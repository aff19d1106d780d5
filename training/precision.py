"""Whether bfloat16 is worth computing in: on a processor without instructions for it, it is many times slower."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch

from vgen.engine.device import lacks


def computes_bfloat16(device: torch.device | str = "cpu") -> bool:
    """Whether a device multiplies bfloat16 matrices by instructions of its own.

    False only for an x86 processor with neither AVX512-BF16 nor AMX: there PyTorch emulates them. Measured on one with
    AVX2 (torch 2.13, 1920 x 256 x 1024, one thread): 1.1 GFLOP/s in place of 70 in float32.

    Args:
        device: where to compute.
    """
    return torch.device(device).type != "cpu" or not lacks("avx512_bf16", "amx_bf16")


def in_float32(device: torch.device) -> AbstractContextManager[Any]:
    """Inside, nothing computes in bfloat16 by itself; on the meta device, where nothing could, either."""
    return torch.autocast("cpu" if device.type == "meta" else device.type, enabled=False)
