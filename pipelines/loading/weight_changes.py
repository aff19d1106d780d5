"""What a LoRA file does to a weight beyond two plain factors: DoRA, LoKr, LoHa, and differences of weights and biases.

peft's layers hold plain LoRAs; the layers here hold the rest, next to them and under the same adapter names, so that
`set_adapters`, fusing and unloading work on both. The changed weight is computed at each call from the factors (a
LoKr of a large model stays small); `fuse_lora` makes it free.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn
from torch.nn import functional as F

from vgen import ops
from vgen.models.transformer.attention import AcrossHeadsNorm
from vgen.models.transformer.rope import Rotation

Shape = tuple[int, ...]
_ENDINGS = {"down": "lora_A.weight", "up": "lora_B.weight", "up_bias": "lora_B.bias", "magnitude": "dora_scale",
            "diff_bias": "diff_b"}  # fmt: skip
"""How roles of `vgen.io.weights.lora_keys` are written; the others go by their own name."""


_SINGLE = ("diff", "diff_bias", "up_bias", "magnitude", "alpha")


class WeightChange(nn.Module):
    """One adapter's change of one layer.

    An update U is added to the weight W. With a magnitude m (DoRA) the sum is brought to that norm, by row or by
    column: m (W + U) / |W + U|. A scale s other than 1 goes the share s of the way from W to that, as ComfyUI does it,
    so that 0 changes nothing; for updates without a magnitude this is s U.

    Args:
        tensors: by role, see `vgen.io.weights.lora_keys.LoraKeys.changes`.
        alpha: of the update; alpha / rank is its own scale.
    """

    magnitude: Tensor
    diff_bias: Tensor
    up_bias: Tensor

    def __init__(self, tensors: Mapping[str, Tensor], alpha: float | None) -> None:
        super().__init__()
        self.roles = tuple(role for role in tensors if role != "alpha")
        for role in self.roles:
            self.register_buffer(role, tensors[role].detach().clone())
        rank = update_rank({role: tuple(tensor.shape) for role, tensor in tensors.items()})
        self.alpha = alpha
        self.update_scale = 1.0 if alpha is None or rank is None else alpha / rank

    def gain(self, weight: Tensor, update: Tensor | None) -> Tensor | None:
        """What the sum of weight and update is multiplied by, [out, 1] or [1, in]; None without a magnitude."""
        if "magnitude" not in self.roles or update is None:
            return None
        by_column = self.magnitude.ndim == 2 and self.magnitude.shape[1] != 1
        norm = (weight + update).norm(dim=0 if by_column else 1, keepdim=True)
        magnitude = self.magnitude.to(weight).reshape(norm.shape)
        return magnitude / norm.clamp_min(torch.finfo(weight.dtype).tiny)

    def bias_change(self, bias: Tensor) -> Tensor | None:
        """What is added to the bias, or None."""
        change = None
        if "diff_bias" in self.roles:
            change = self.diff_bias.to(bias)
        if "up_bias" in self.roles:
            own = self.up_bias.to(bias) * self.update_scale
            change = own if change is None else change + own
        return change

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors by the endings of their keys in a file."""
        for role in self.roles:
            yield _ENDINGS.get(role, role), getattr(self, role)
        if self.alpha is not None:
            yield "alpha", torch.tensor(self.alpha)

    def update(self, weight: Tensor) -> Tensor | None:
        """U in the shape, dtype and device of `weight`, or None."""
        parts = {role: getattr(self, role).to(weight) for role in self.roles}
        update = None
        if "up" in parts:
            update = parts["up"] @ parts["down"]
        elif "hada_w1_a" in parts:
            update = (parts["hada_w1_a"] @ parts["hada_w1_b"]) * (parts["hada_w2_a"] @ parts["hada_w2_b"])
        elif "lokr_w1" in parts or "lokr_w1_a" in parts:
            one, two = (
                parts[name] if name in parts else parts[f"{name}_a"] @ parts[f"{name}_b"]
                for name in ("lokr_w1", "lokr_w2")
            )
            update = torch.kron(one.contiguous(), two.contiguous())
        if update is not None and self.update_scale != 1:
            update = update * self.update_scale
        if "diff" in parts:
            update = parts["diff"] if update is None else update + parts["diff"]
        return update


class ChangedLayer(nn.Module, BaseTunerLayer):
    """A linear layer with `WeightChange`s by adapter; peft's machinery switches, scales and deletes them.

    Args:
        base_layer: the layer itself.
    """

    changes: Any
    """Of type nn.ModuleDict: WeightChange by adapter."""
    get_base_layer: Callable[[], Any]  # of peft, which has no types
    active_adapters: list[str]
    adapter_layer_names = ("changes",)
    other_param_names = ("scaling",)

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.changes = nn.ModuleDict()
        self.scaling: dict[str, float] = {}
        self.merged_adapters: list[str] = []
        self._merged: list[tuple[str, float, Tensor | None]] = []

    def add(self, name: str, change: WeightChange) -> None:
        """Take a change of adapter `name`, to the device of the layer."""
        layer: Any = self.get_base_layer()
        self.changes[name], self.scaling[name] = change.to(layer.weight.device), 1.0

    def set_scale(self, adapter: str, scale: float) -> None:
        """Set the scale of an adapter; one that this layer does not have is ignored."""
        if adapter in self.changes:
            self.scaling[adapter] = scale

    def scale_layer(self, scale: float) -> None:
        """Multiply the scales of the active adapters."""
        for name in self._active():
            self.scaling[name] *= scale

    def unscale_layer(self, scale: float | None = None) -> None:
        """Undo `scale_layer`; None: set them to 1."""
        for name in self._active():
            self.scaling[name] = 1.0 if scale is None else self.scaling[name] / scale

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Write the changed weights into the layer, see peft.

        Raises:
            ValueError: they are not finite, with `safe_merge`.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.changes]
        if not names:
            return
        base: Any = self.get_base_layer()
        weight, bias, gains = self._changed(names)
        if safe_merge and not all(bool(torch.isfinite(value).all()) for value in (weight, bias) if value is not None):
            raise ValueError(f"The weights of {', '.join(names)} would not be finite: they were not merged.")
        base.weight.data.copy_(weight)
        if bias is not None:
            base.bias.data.copy_(bias)
        self._merged += [(name, self.scaling[name], gain) for name, gain in zip(names, gains, strict=True)]
        self.merged_adapters.extend(names)

    def unmerge(self) -> None:
        """Take the changes off again, exact up to rounding; `Loras.restore_unfused` brings back every bit."""
        base: Any = self.get_base_layer()
        weight, bias = _working(base.weight), _bias(base)
        factor: float | Tensor = 1.0
        summand = torch.zeros_like(weight)
        for name, scale, gain in self._merged:
            factor, summand = _add(factor, summand, scale, gain, self.changes[name].update(weight))
            own = None if bias is None else self.changes[name].bias_change(bias)
            bias = bias if bias is None or own is None else bias - scale * own
        base.weight.data.copy_((weight - summand) / factor)
        if bias is not None:
            base.bias.data.copy_(bias)
        self._merged, self.merged_adapters = [], []

    def delete_adapter(self, adapter_name: str) -> None:
        """See peft; what of it was merged stays merged."""
        super().delete_adapter(adapter_name)
        self._merged = [entry for entry in self._merged if entry[0] != adapter_name]
        self.merged_adapters = [name for name in self.merged_adapters if name != adapter_name]

    def forward(self, hidden_states: Tensor) -> Tensor:
        """As the layer, with its changed weight and bias."""
        base: Any = self.get_base_layer()
        names = self._adding()
        if not names:
            return base(hidden_states)
        weight, bias, _ = self._changed(names)
        return F.linear(hidden_states, weight.to(base.weight.dtype), None if bias is None else bias.to(base.bias.dtype))

    def _active(self) -> list[str]:
        return [name for name in self.active_adapters if name in self.changes]

    def _adding(self) -> list[str]:
        """Adapters that change the result now."""
        if self.disable_adapters:
            if self.merged:
                self.unmerge()
            return []
        return [] if self.merged else [name for name in self._active() if self.scaling[name] != 0]

    def _changed(self, names: Sequence[str]) -> tuple[Tensor, Tensor | None, list[Tensor | None]]:
        """Weight and bias as these adapters make them, and the gain of each; in float32 or wider."""
        base: Any = self.get_base_layer()
        weight, bias = _working(base.weight), _bias(base)
        factor: float | Tensor = 1.0
        summand, gains = torch.zeros_like(weight), []
        for name in names:
            change, scale = self.changes[name], self.scaling[name]
            update = change.update(weight)
            gains.append(change.gain(weight, update))
            factor, summand = _add(factor, summand, scale, gains[-1], update)
            own = None if bias is None else change.bias_change(bias)
            bias = bias if bias is None or own is None else bias + scale * own
        return weight * factor + summand, bias, gains


def _add(
    factor: float | Tensor, summand: Tensor, scale: float, gain: Tensor | None, update: Tensor | None
) -> tuple[float | Tensor, Tensor]:
    """One change more in W (1 + sum s (g - 1)) + sum s g U."""
    if update is not None:
        summand = summand + (scale * update if gain is None else scale * gain * update)
    return factor if gain is None else factor + scale * (gain - 1), summand


class ChangedNorm(ChangedLayer):
    """The same for a norm of queries or keys."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """As AcrossHeadsNorm."""
        return self.rotated(hidden_states, None)

    def rotated(self, hidden_states: Tensor, rotation: Rotation | None) -> Tensor:
        """As AcrossHeadsNorm."""
        base: Any = self.get_base_layer()
        names = self._adding()
        if not names:
            return base.rotated(hidden_states, rotation)
        weight = self._changed(names)[0].to(base.weight.dtype)
        cosines, sines = rotation or (None, None)
        return ops.norm_rotate(hidden_states, weight, cosines, sines, base.eps)


def _working(weight: Tensor) -> Tensor:
    return weight.detach().to(torch.promote_types(weight.dtype, torch.float32))


def _bias(layer: nn.Module) -> Tensor | None:
    bias = getattr(layer, "bias", None)
    return None if bias is None else _working(bias)


def put_changes(transformer: nn.Module, name: str, changes: Mapping[str, WeightChange]) -> None:
    """Put an adapter's changes into the layers of a transformer, innermost where they carry adapters already.

    Args:
        transformer: any.
        name: of the adapter.
        changes: by module.
    """
    for module, change in changes.items():
        parent, _, leaf = module.rpartition(".")
        owner: Any = transformer.get_submodule(parent)
        layer: Any = getattr(owner, leaf)
        while hasattr(layer, "base_layer") and not isinstance(layer, ChangedLayer):
            owner, leaf, layer = layer, "base_layer", layer.base_layer
        if not isinstance(layer, ChangedLayer):
            wrapper = (ChangedNorm if isinstance(layer, AcrossHeadsNorm) else ChangedLayer)(layer)
            setattr(owner, leaf, wrapper)
            layer = wrapper
        layer.add(name, change)


def changes_of(transformer: nn.Module, name: str) -> dict[str, WeightChange]:
    """The changes of an adapter by module."""
    changes: dict[str, WeightChange] = {}
    for path, module in transformer.named_modules():
        if isinstance(module, ChangedLayer) and name in module.changes:
            changes[path.replace(".base_layer", "")] = module.changes[name]
    return changes


def update_rank(shapes: Mapping[str, Shape]) -> int | None:
    """Rank of the factors by role; None where there are none (a difference, a LoKr of two whole matrices)."""
    for role, axis in (("down", 0), ("hada_w1_b", 0), ("lokr_w1_b", 0), ("lokr_w2_b", 0)):
        if role in shapes:
            return shapes[role][axis]
    return None


def shape_fault(shapes: Mapping[str, Shape], weight: Shape, has_bias: bool) -> str | None:
    """What of a change does not fit a layer, or None.

    Args:
        shapes: by role.
        weight: shape of the layer's weight.
        has_bias: whether it has a bias.
    """
    given = {role: list(shape) for role, shape in shapes.items()}
    if any(given.get(role, [weight[0]]) != [weight[0]] or (role in given and not has_bias)
           for role in ("diff_bias", "up_bias")):  # fmt: skip
        return f"takes a bias of [{weight[0]}]" if has_bias else "has no bias to change"
    if tuple(given.get("diff", weight)) != weight:
        return f"takes a difference of {list(weight)}, not {given['diff']}"
    factors = [tuple(shapes[role]) for role in shapes if role not in _SINGLE]
    if any(len(shape) != 2 or not math.prod(shape) for shape in factors):
        return "takes factors of two dimensions, not " + ", ".join(f"{role} {shape}" for role, shape in given.items())
    if factors and _product_shape(shapes) != weight:
        return f"takes factors of {list(weight)}, not " + ", ".join(f"{role} {shape}" for role, shape in given.items())
    if "magnitude" in shapes:
        allowed = ((weight[0],), (weight[0], 1), (1, weight[1]))
        if tuple(shapes["magnitude"]) not in allowed:
            return f"takes a magnitude of [{weight[0]}, 1] or [1, {weight[1]}], not {given['magnitude']}"
    return None


def _product_shape(shapes: Mapping[str, Shape]) -> Shape | None:
    """Shape of the update that factors make, None where they do not fit each other."""

    def product(left: str, right: str) -> Shape | None:
        return (shapes[left][0], shapes[right][1]) if shapes[left][1] == shapes[right][0] else None

    if "down" in shapes:
        return product("up", "down")
    if "hada_w1_a" in shapes:
        one, two = product("hada_w1_a", "hada_w1_b"), product("hada_w2_a", "hada_w2_b")
        return one if one == two else None
    whole = [shapes[name] if name in shapes else product(f"{name}_a", f"{name}_b") for name in ("lokr_w1", "lokr_w2")]
    if None in whole:
        return None
    sizes = list(chain(*(shape or () for shape in whole)))
    return (sizes[0] * sizes[2], sizes[1] * sizes[3])
