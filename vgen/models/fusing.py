"""Linear layers of one input as one matrix product, without a second copy of their weights.

The weights are moved to be neighbours in memory; each layer keeps its own view, so that names, saving and training stay
as they are. Whatever replaces a weight (an adapter, offloading, another dtype) ends the neighbourhood, and with it the
shortcut.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vgen.ops import switches


def plain(module: nn.Module) -> bool:
    """Whether a module runs its class's own forward with nothing around it, so that its weights may be used directly.

    Offloading and casting wrap `forward` or hook into it, and only then put the weights in place.
    """
    return "forward" not in vars(module) and not module._forward_hooks and not module._forward_pre_hooks


def bare(layer: nn.Module) -> nn.Module:
    """The layer inside an adapter's wrapper that adds nothing at present, so that it works as if there were none.

    Args:
        layer: any module; peft's wrappers have `base_layer`, `scaling` and `active_adapters`.
    """
    wrapper: Any = layer
    base: nn.Module | None = getattr(layer, "base_layer", None)
    if base is None or getattr(layer, "merged", True) or not hasattr(layer, "scaling") or not plain(layer):
        return layer
    adding = [name for name in wrapper.active_adapters if wrapper.scaling.get(name, 0) != 0]
    return layer if adding and not wrapper.disable_adapters else base


def move_together(*layers: nn.Module) -> bool:
    """Move weights and biases of plain linear layers with the same inputs next to each other.

    Args:
        layers: with the same number of inputs.
    Returns:
        Whether they are neighbours now; never where a layer is not plain, or wants gradients and is being trained.
    """
    inner = tuple(bare(layer) for layer in layers)
    if not _plain(inner) or any(layer.training for layer in inner):
        return False
    if neighbours(*inner) is not None:
        return True
    with torch.no_grad():
        for name in ("weight", "bias"):
            values = [getattr(layer, name) for layer in inner]
            if values[0] is not None:
                for value, piece in zip(values, torch.cat(values).split([len(v) for v in values]), strict=True):
                    value.data = piece
    return True


def together(hidden_states: Tensor, *layers: nn.Module) -> tuple[Tensor, ...]:
    """Linear layers of one size on one input [..., D]: in one product where their weights are neighbours."""
    joined = neighbours(*layers)
    if joined is None:
        return tuple(layer(hidden_states) for layer in layers)
    return F.linear(hidden_states, *joined).chunk(len(layers), dim=-1)


def neighbours(*layers: nn.Module) -> tuple[Tensor, Tensor | None] | None:
    """Weight and bias of all layers as one, [sum of outputs, inputs] and [sum of outputs]: views of what is there.

    Returns:
        None where they do not lie next to each other, gradients are wanted, or the part is turned off.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or not switches.enabled("fused_qkv"):
        return None
    inner = tuple(bare(layer) for layer in layers)
    if not _plain(inner):
        return None
    weight = _joined([layer.weight for layer in inner])
    if weight is None or inner[0].bias is None:
        return None if weight is None else (weight, None)
    bias = _joined([layer.bias for layer in inner])
    return None if bias is None else (weight, bias)


def _plain(layers: tuple[nn.Module, ...]) -> TypeGuard[tuple[nn.Linear, ...]]:
    """Whether all are linear layers and nothing more, on a device, alike."""
    first: Any = layers[0]
    return all(
        type(layer) is nn.Linear
        and type(layer.weight) is nn.Parameter
        and plain(layer)
        and layer.weight.device.type != "meta"
        and (layer.weight.dtype, layer.weight.device) == (first.weight.dtype, first.weight.device)
        and layer.in_features == first.in_features
        and (layer.bias is None) == (first.bias is None)
        for layer in layers
    )


def _joined(values: Sequence[Tensor]) -> Tensor | None:
    first, place = values[0], values[0].data_ptr()
    for value in values:
        if not value.is_contiguous() or value.data_ptr() != place or not _same_memory(value, first):
            return None
        place += value.numel() * value.element_size()
    rows = sum(len(value) for value in values)
    return first.detach().as_strided((rows, *first.shape[1:]), first.stride())


def _same_memory(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
