"""What is added to a finished transformer before it is fine-tuned: a LoRA, and frozen weights in 8 bits."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import LoraConfig as PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from vgen.errors import RequestError, VgenError
from vgen.models import VideoDiT
from vgen.pipelines.loading.lora import linear_layers
from vgen.training.config.data import LoraConfig

ADAPTER = "default"
"""Name of the adapter that is trained."""

_TARGETS = {
    "attention": (".to_q", ".to_k", ".to_v", ".to_out.0"),
    "blocks": (".to_q", ".to_k", ".to_v", ".to_out.0", ".ff.net.0.proj", ".ff.net.2"),
    "all": ("",),
}


def add_lora(transformer: VideoDiT, config: LoraConfig, seed: int, name: str = ADAPTER) -> None:
    """Freeze a transformer and add a LoRA in float32; its first factor is drawn from the seed, the second is zero.

    Raises:
        RequestError: a target that is no layer.
    """
    layers = lora_layers(transformer, config.targets)
    transformer.requires_grad_(False)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.manual_seed(seed)
        warnings.filterwarnings("ignore", message="TorchaoLoraLinear was instantiated")  # nothing is merged here
        transformer.add_adapter(
            PeftConfig(
                r=config.rank,
                lora_alpha=config.alpha if config.alpha is not None else config.rank,
                lora_dropout=config.dropout,
                target_modules=layers,
            ),
            adapter_name=name,
        )
    for parameter in transformer.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


@contextmanager
def without_adapters(transformer: VideoDiT) -> Iterator[None]:
    """Inside, a transformer is what it was before its adapters."""
    layers = [module for module in transformer.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def lora_layers(transformer: VideoDiT, targets: list[str]) -> list[str]:
    """Names of the linear layers that targets mean.

    Raises:
        RequestError: one of them means none.
    """
    names = list(linear_layers(transformer))
    chosen: set[str] = set()
    for target in targets:
        endings = _TARGETS.get(target, (target,))
        inside = target in ("attention", "blocks")
        found = {name for name in names if name.endswith(endings) and (not inside or "_blocks." in name)}
        if not found:
            raise RequestError(
                f"lora.targets: {target!r} is no linear layer; use {', '.join(_TARGETS)}, or endings such as "
                "attn1.to_q."
            )
        chosen |= found
    return [name for name in names if name in chosen]


def quantize_blocks(transformer: VideoDiT, kind: str) -> None:
    """Keep the weights of all blocks' linear layers in 8 bits, in place; they are widened when they are used.

    Args:
        transformer: frozen from now on.
        kind: int8 or float8, one scale a row of each weight.
    Raises:
        VgenError: torchao is not installed.
    """
    try:
        from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_
    except ImportError:
        raise VgenError(f"base_weights={kind} needs torchao: pip install 'vgen[low-memory]', or use keep.") from None
    transformer.requires_grad_(False)
    config = Int8WeightOnlyConfig() if kind == "int8" else Float8WeightOnlyConfig()
    quantize_(transformer, config, filter_fn=lambda module, name: isinstance(module, nn.Linear) and "_blocks." in name)
