"""Linear layers of a transformer's blocks, or of a text encoder, in 8 bits: lossy, opt-in, in place.

Of a transformer, what is computed once a call (keys and values of the text), and what is small or delicate (time, text
projection, first and last layer, norms, modulation) stays as it is, except that "int8-weights" also narrows the former.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vgen.engine.device import lacks
from vgen.errors import RequestError
from vgen.models import VideoDiT
from vgen.request.lossy import QUANTIZATIONS, TEXT_QUANTIZATIONS, check_kind

_EACH_STEP: Final = (
    "attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_q", "attn2.to_out.0", "ff.net.0.proj",
    "ff.net.2",
)  # fmt: skip
_ONCE: Final = ("attn2.to_k", "attn2.to_v")
FP8_LARGEST: Final = 448.0
"""Of float8_e4m3fn."""


class QuantizedLinear(nn.Module):
    """A linear layer with weights in 8 bits; cannot be trained, saved or brought back.

    Args:
        linear: what it stands for.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        raise RequestError("a quantised model cannot be saved: save it before, and quantise what is loaded.")

    def extra_repr(self) -> str:
        """Sizes, for print."""
        return f"in_features={self.in_features}, out_features={self.out_features}"


def rowwise_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round to 8 bits with one scale per row, symmetric.

    Args:
        weight: [O, I].
    Returns:
        int8 [O, I], and scales [O], float32: weight is about their product.
    """
    weight = weight.detach().float()
    scale = weight.abs().amax(dim=1).clamp(min=1e-12) / 127
    return (weight / scale[:, None]).round().to(torch.int8), scale


class Int8Linear(QuantizedLinear):
    """Weights int8 with a scale per row, activations uint8 with one scale for all, computed at every call; CPU.

    The product is oneDNN's, with integer instructions where the processor has them (VNNI, AMX). Where it has none, two
    products are added in 16 bits, which 8-bit activations would overflow: they have 7 there.

    Args:
        linear: on the CPU.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        narrow, scale = rowwise_int8(linear.weight)
        zero = torch.zeros(len(scale), dtype=torch.long)
        bias = None if linear.bias is None else linear.bias.detach().float().clone()
        self.activation_bits = 7 if lacks("avx512_vnni", "avx_vnni", "amx_int8") else 8
        before = torch.backends.quantized.engine
        torch.backends.quantized.engine = "onednn"
        try:
            with warnings.catch_warnings():  # tensors of torch.qint8 are deprecated; what else there is takes longer
                warnings.filterwarnings("ignore", message=".*quantized tensor creation.*")
                weight = torch.quantize_per_channel(narrow.float() * scale[:, None], scale, zero, 0, torch.qint8)
            self._packed = torch.ops.quantized.linear_prepack(weight, bias)
        finally:
            torch.backends.quantized.engine = before

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features], dtype of the input."""
        if hidden_states.device.type != "cpu":
            raise RequestError(f"quantize='int8' was done for the CPU, not for {hidden_states.device}: do it there.")
        product = torch.ops.quantized.linear_dynamic(hidden_states.float(), self._packed, self.activation_bits < 8)
        return product.to(hidden_states.dtype)


class Int8WeightLinear(QuantizedLinear):
    """Weights int8 with a scale per row, widened for every product: a quarter of float32's memory, no faster.

    Args:
        linear: anywhere.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        narrow, scale = rowwise_int8(linear.weight)
        self.register_buffer("weight", narrow)
        self.register_buffer("scale", scale.to(linear.weight.dtype))
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().clone())

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features], dtype of the input."""
        weight = self.weight.to(hidden_states.dtype) * self.scale[:, None].to(hidden_states.dtype)
        return F.linear(hidden_states, weight, self.bias)


def rowwise_fp8(values: Tensor) -> tuple[Tensor, Tensor]:
    """Round to FP8 with one scale per row.

    Args:
        values: [N, I].
    Returns:
        float8_e4m3fn [N, I], and scales [N, 1], float32: values are about their product.
    """
    scale = values.abs().amax(dim=1, keepdim=True).float().clamp(min=1e-12) / FP8_LARGEST
    return (values / scale).clamp(-FP8_LARGEST, FP8_LARGEST).to(torch.float8_e4m3fn), scale


class Fp8Linear(QuantizedLinear):
    """Weights and activations in FP8, each with a scale per row; sums in float32, the product in bfloat16.

    Args:
        linear: both of its sizes divide by 16.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        narrow, scale = rowwise_fp8(linear.weight.detach())
        self.register_buffer("weight", narrow)
        self.scale = scale.t()  # no buffer: float32 whatever the model is cast to
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().clone())

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features], dtype of the input."""
        rows, scale = rowwise_fp8(hidden_states.flatten(0, -2))
        if self.scale.device != rows.device:
            self.scale = self.scale.to(rows.device)
        product = torch._scaled_mm(
            rows, self.weight.t(), scale_a=scale, scale_b=self.scale, out_dtype=torch.bfloat16, use_fast_accum=False
        )
        product = product.unflatten(0, hidden_states.shape[:-1]).to(hidden_states.dtype)
        return product if self.bias is None else product + self.bias


def quantize(transformer: VideoDiT, kind: str) -> list[str]:
    """Put the linear layers of a transformer's blocks in 8 bits, in place and for good.

    Args:
        transformer: a VideoDiT, on the device that it will work on; LoRA adapters, if any, are fused.
        kind: "int8" (CPU, faster with VNNI or AMX; on a GPU through torchao), "int8-weights" (saves memory only), "fp8"
            (NVIDIA GPUs of capability 8.9 and up).
    Returns:
        Names of the layers.
    Raises:
        RequestError: what the device cannot do, what is missing, an adapter that is not fused, or a second time.
    """
    check_kind("quantize", kind, QUANTIZATIONS)
    if getattr(transformer, "quantized", None) is not None:
        raise RequestError(
            f"quantize={kind!r}: the transformer is {transformer.quantized} already; load the model again."
        )
    device = next(transformer.parameters()).device
    layers = _layers(transformer, (*_EACH_STEP, *_ONCE) if kind == "int8-weights" else _EACH_STEP)
    check_device(kind, device, layers)
    if kind == "int8" and device.type != "cpu":
        _through_torchao(transformer, layers)
    else:
        make = {"int8": Int8Linear, "int8-weights": Int8WeightLinear, "fp8": Fp8Linear}[kind]
        _replace(transformer, layers, make)
    transformer.quantized = kind
    return list(layers)


def quantize_text_encoder(encoder: nn.Module, kind: str) -> list[str]:
    """Put the linear layers of a T5 encoder's blocks in 8 bits, in place and for good.

    Args:
        encoder: a T5EncoderModel, anywhere, also without content.
        kind: "int8-weights": about half of what it takes in bfloat16; embeddings and norms stay as they are.
    Returns:
        Names of the layers.
    Raises:
        RequestError: an unknown kind, or a second time.
    """
    check_kind("quantize_text", kind, TEXT_QUANTIZATIONS)
    layers = {name: layer for name, layer in encoder.named_modules() if isinstance(layer, nn.Linear)}
    if not layers:
        raise RequestError(f"quantize_text={kind!r}: there is no linear layer; is it in 8 bits already?")
    _replace(encoder, layers, Int8WeightLinear)
    return list(layers)


def refuse_quantized(transformer: nn.Module, what: str) -> None:
    """Refuse what needs the weights as they were.

    Raises:
        RequestError: the transformer is quantised.
    """
    kind = getattr(transformer, "quantized", None)
    if kind is not None:
        raise RequestError(f"{what}: the transformer is quantised ({kind}), and its weights are gone: do this before.")


def check_device(kind: str, device: torch.device, layers: dict[str, nn.Linear]) -> None:
    """Refuse what a device cannot do.

    Raises:
        RequestError: with what would work.
    """
    if kind == "fp8":
        capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
        if capability is None or capability < (8, 9):
            device_name = device.type if capability is None else f"a GPU of capability {capability[0]}.{capability[1]}"
            raise RequestError(
                f"quantize='fp8' needs an NVIDIA GPU of capability 8.9 or higher, this is {device_name}: use int8 on a "
                "CPU, or int8-weights."
            )
        odd = [name for name, layer in layers.items() if layer.in_features % 16 or layer.out_features % 16]
        if odd:
            raise RequestError(
                f"quantize='fp8' needs sizes that divide by 16, and those of {odd[0]} do not: use int8-weights."
            )
    if kind == "int8" and device.type == "cpu":
        known = hasattr(torch, "quantize_per_channel") and hasattr(torch.ops.quantized, "linear_dynamic")
        if not known or "onednn" not in torch.backends.quantized.supported_engines:
            raise RequestError(
                f"quantize='int8' needs oneDNN's integer products, which torch {torch.__version__} is without: use "
                "int8-weights, or --dtype bfloat16."
            )
    if kind == "int8" and device.type not in ("cpu", "cuda"):
        raise RequestError(f"quantize='int8' does not work on {device.type}: use int8-weights.")


def _layers(transformer: VideoDiT, endings: tuple[str, ...]) -> dict[str, nn.Linear]:
    """The layers by name; what wraps them for a fused LoRA is left away."""
    layers: dict[str, nn.Module] = {}
    for index, block in enumerate(transformer.transformer_blocks):
        for ending in endings:
            layer = block.get_submodule(ending)
            base = getattr(layer, "base_layer", None)
            if base is not None and not getattr(layer, "merged", False):
                raise RequestError(
                    "quantize: a LoRA is loaded and not fused, and what is quantised cannot be adapted: call "
                    "fuse_lora() first, or delete the adapters."
                )
            layers[f"transformer_blocks.{index}.{ending}"] = layer if base is None else base
    linear = {name: layer for name, layer in layers.items() if isinstance(layer, nn.Linear)}
    for name, layer in layers.items():
        if name not in linear:
            raise RequestError(f"quantize: {name} is a {type(layer).__name__}, which is not a linear layer.")
    return linear


def _replace(transformer: nn.Module, layers: dict[str, nn.Linear], make: Callable[[nn.Linear], nn.Module]) -> None:
    for name, layer in layers.items():
        owner, _, last = name.rpartition(".")
        setattr(transformer.get_submodule(owner), last, make(layer))


def _through_torchao(transformer: nn.Module, layers: dict[str, nn.Linear]) -> None:
    """int8 on a GPU is torchao's: a scale per token and per row."""
    try:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
    except ImportError:
        raise RequestError(
            "quantize='int8' on a GPU needs torchao: pip install 'vgen[low-memory]', or use fp8 or int8-weights."
        ) from None
    transformer.requires_grad_(False)
    chosen = {id(layer) for layer in layers.values()}
    quantize_(transformer, Int8DynamicActivationInt8WeightConfig(), filter_fn=lambda module, name: id(module) in chosen)
