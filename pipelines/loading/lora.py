"""LoRA on a pipeline's transformer: files of every layout in, exact fusing, and a file that keeps its scales out."""

from __future__ import annotations

import json
import logging
import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers.loaders import LTXVideoLoraLoaderMixin
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vgen.engine.lossy.quantize import refuse_quantized
from vgen.errors import CheckpointError, RequestError, counted
from vgen.io.files import follow_umask
from vgen.io.weights.lora_file import DEFAULTS_KEY, METADATA_KEY, WEIGHT_NAME, LoraFile
from vgen.io.weights.lora_keys import LoraKeys, map_lora_keys, settled, settled_alpha
from vgen.io.weights.safetensors_header import TensorEntry
from vgen.models.transformer.attention import AcrossHeadsNorm
from vgen.pipelines.loading.weight_changes import (
    ChangedLayer,
    WeightChange,
    changes_of,
    put_changes,
    shape_fault,
    update_rank,
)

logger = logging.getLogger(__name__)

_KEPT = "_weights_before_fusing"
"""Attribute of a transformer: weights as they were, by layer; pipelines that share it share them."""

_DEFAULTS = "_defaults_of_loras"
"""Attribute of a transformer: settings by adapter, as its file says them."""


@dataclass(frozen=True)
class LoadedLora:
    """What `load_lora_weights` did.

    Attributes:
        adapter_name: name for `set_adapters`.
        layout: of the keys: "diffusers", "original" or "kohya".
        modules: layers that it changes.
        unmatched: keys that were left out; the warning says why.
        text_encoder: keys for a text encoder, left out.
    """

    adapter_name: str
    layout: str
    modules: tuple[str, ...]
    unmatched: tuple[str, ...]
    text_encoder: tuple[str, ...]


class PipelineLora(LTXVideoLoraLoaderMixin):
    """The part of a pipeline that knows LoRA; `set_adapters`, `delete_adapters` and the rest are diffusers' own."""

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | os.PathLike[str] | Mapping[str, Tensor],
        adapter_name: str | None = None,
        hotswap: bool = False,
        *,
        weight_name: str | None = None,
        low_cpu_mem_usage: bool = False,
    ) -> LoadedLora:
        """Load a LoRA beside those that are there; `set_adapters` says which count, and how much.

        Args:
            pretrained_model_name_or_path_or_dict: a safetensors file, a folder with one, or tensors by key.
            adapter_name: a name of its own, without dots; left out, default_0 and so on.
            hotswap: put it in the place of the adapter of that name.
            weight_name: of the file in the folder.
            low_cpu_mem_usage: as in diffusers.
        Returns:
            what was loaded, and which keys were left out; those are said in a warning, too.
        Raises:
            CheckpointError: no such file, a pickle, a damaged file, no key that fits, or shapes that do not.
            RequestError: the adapter's name is taken or is no name.
        """
        self._check_adapter(adapter_name, hotswap)
        layers = tunable_layers(self.transformer)
        given, file = pretrained_model_name_or_path_or_dict, None
        source, config = "the LoRA", {}
        entries: Mapping[str, Tensor] | Mapping[str, TensorEntry]
        if isinstance(given, Mapping):
            entries = given
        else:
            file = LoraFile.open(os.fspath(given), weight_name)
            source, config, entries = str(file.path), dict(file.config), file.entries
        keys = map_lora_keys(entries, layers, source)
        shapes = {key: tuple(entry.shape) for key, entry in entries.items()}
        _check_shapes(keys, shapes, layers, source)
        if config.get("use_dora") and keys.factors:
            bare = next(iter(keys.factors))
            raise CheckpointError(f"{source}: its configuration says use_dora, and {bare!r} has no magnitude.")
        if hotswap and keys.changes:
            raise RequestError(
                f"{source} holds more than plain LoRA factors, which cannot be swapped in place: load it."
            )
        loaded = given if isinstance(given, Mapping) else load_file(source)
        changes = _changes(keys, loaded, config, source)
        name = adapter_name or self._free_name()
        if keys.factors:
            state, settings = _to_peft(keys, loaded, config, source)
            self.transformer.load_lora_adapter(
                state,
                prefix=None,
                adapter_name=name,
                metadata=settings,
                hotswap=hotswap,
                low_cpu_mem_usage=low_cpu_mem_usage,
                _pipeline=self,
            )
        else:
            known = {**getattr(self.transformer, "peft_config", {}), name: LoraConfig(target_modules=[*keys.changes])}
            self.transformer.peft_config, self.transformer._hf_peft_config_loaded = known, True
        put_changes(self.transformer, name, changes)
        if any(isinstance(module, ChangedLayer) for module in self.transformer.modules()):
            self.transformer.set_adapter(name)  # as loading plain factors does
        stored = {**getattr(self.transformer, _DEFAULTS, {}), name: dict(file.defaults) if file else {}}
        setattr(self.transformer, _DEFAULTS, stored)
        faults = keys.faults()
        if faults:
            logger.warning("%s: left out: %s", source, faults)
        return LoadedLora(name, keys.layout, keys.modules, keys.unmatched, keys.text_encoder)

    def fuse_lora(self, components: list[str] | None = None, **kwargs: Any) -> None:
        """Add the active adapters to the weights, as diffusers does; the weights themselves are kept on the CPU.

        Args:
            components: ["transformer"], or left out.
            **kwargs: as diffusers' own: lora_scale, safe_fusing, adapter_names.
        Raises:
            RequestError: there is no LoRA, or a layer is quantised and cannot be brought back exactly.
        """
        kept = getattr(self.transformer, _KEPT, {})
        tuned = {
            name: module for name, module in self.transformer.named_modules() if isinstance(module, BaseTunerLayer)
        }
        if not tuned:
            raise RequestError("fuse_lora: no LoRA is loaded; call load_lora_weights before.")
        for name, module in tuned.items():
            base, layer = module.get_base_layer(), name.removesuffix(".base_layer")
            if type(base) not in (nn.Linear, AcrossHeadsNorm):
                raise RequestError(f"fuse_lora: {layer!r} is a {type(base).__name__}: use the LoRA without fusing it.")
            weights = {key: value.detach().to("cpu", copy=True) for key, value in base.named_parameters()}
            kept.setdefault(layer, weights)
        setattr(self.transformer, _KEPT, kept)
        super().fuse_lora(components=components or ["transformer"], **kwargs)

    def unfuse_lora(self, components: list[str] | None = None, **kwargs: Any) -> None:
        """Bring back the weights as they were before `fuse_lora`, to the bit, also if its adapters were unloaded."""
        refuse_quantized(self.transformer, "unfuse_lora")
        super().unfuse_lora(components=components or ["transformer"], **kwargs)
        kept = getattr(self.transformer, _KEPT, {})
        for name, weights in kept.items():
            module = self.transformer.get_submodule(name)
            base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
            for key, weight in weights.items():
                base.get_parameter(key).data.copy_(weight)
        setattr(self.transformer, _KEPT, {})

    def save_lora(
        self,
        folder: str | os.PathLike[str],
        adapter_name: str | None = None,
        weight_name: str = WEIGHT_NAME,
        defaults: Mapping[str, Any] | None = None,
    ) -> Path:
        """Write a loaded LoRA in diffusers' layout, with its alphas and ranks.

        diffusers loads the same from a plain LoRA. What else there is (DoRA, LoKr, LoHa, differences) has the names of
        LyCORIS and ComfyUI, and comes back here as it was.

        Args:
            folder: where it goes; made if it is not there.
            adapter_name: which; may be left out if there is only one.
            weight_name: of the file.
            defaults: settings that it was made for, see `lora_defaults`; None keeps those it was loaded with.
        Returns:
            the file.
        Raises:
            RequestError: no such adapter.
        """
        have = list(getattr(self.transformer, "peft_config", {}))
        name = adapter_name if adapter_name is not None else (have[0] if len(have) == 1 else None)
        if name is None or name not in have:
            raise RequestError(f"adapter_name={adapter_name!r} names none of the LoRAs that are loaded: {have}.")
        state = {}
        if any(isinstance(module, LoraLayer) and name in module.lora_A for module in self.transformer.modules()):
            whole = get_peft_model_state_dict(self.transformer, adapter_name=name)
            state = {key: value for key, value in whole.items() if ".changes." not in key}
        for module, change in changes_of(self.transformer, name).items():
            state |= {f"{module}.{ending}": tensor for ending, tensor in change.tensors()}
        config = self.transformer.peft_config[name].to_dict()
        about = {f"transformer.{key}": sorted(v) if isinstance(v, set) else v for key, v in config.items()}
        file = Path(folder) / weight_name
        file.parent.mkdir(parents=True, exist_ok=True)
        tensors = {f"transformer.{key}": value.detach().cpu().contiguous() for key, value in state.items()}
        metadata = {"format": "pt", METADATA_KEY: json.dumps(about, sort_keys=True)}
        if defaults is None:
            defaults = getattr(self.transformer, _DEFAULTS, {}).get(name)
        if defaults:
            metadata[DEFAULTS_KEY] = json.dumps(dict(defaults), sort_keys=True)
        save_file(tensors, file, metadata)
        follow_umask(file)
        return file

    def lora_defaults(self) -> dict[str, Any]:
        """Settings that the active LoRAs were made for, e.g. the sigmas of a distilled one; they go before the model's.

        Raises:
            RequestError: two of them are for different sigmas.
        """
        stored = getattr(self.transformer, _DEFAULTS, {})
        found: dict[str, Any] = {}
        for name in self.get_active_adapters() if stored else ():
            for key, value in stored.get(name, {}).items():
                if found.setdefault(key, value) != value:
                    raise RequestError(
                        f"{name!r} is for {key}={value}, another LoRA for {found[key]}: use one of them."
                    )
        return found

    def _check_adapter(self, name: str | None, hotswap: bool) -> None:
        refuse_quantized(self.transformer, "load_lora_weights")
        taken = getattr(self.transformer, "peft_config", {})
        if name is not None and (not name or "." in name):
            raise RequestError(f"adapter_name={name!r} is no name for an adapter; use one without dots.")
        if name in taken and not hotswap:
            raise RequestError(f"adapter_name={name!r} is taken; use another, or delete_adapters({name!r}) before.")

    def _free_name(self) -> str:
        taken = getattr(self.transformer, "peft_config", {})
        return next(name for n in range(len(taken) + 1) if (name := f"default_{n}") not in taken)


def linear_layers(transformer: nn.Module) -> dict[str, tuple[int, int]]:
    """(out, in) of a transformer's linear layers by name, whether they carry a LoRA or not."""
    found: dict[str, tuple[int, int]] = {}
    tuned: set[str] = set()
    for name, module in transformer.named_modules():
        if any(name.startswith(f"{outer}.") for outer in tuned):
            continue
        base = module
        if isinstance(module, BaseTunerLayer):
            tuned.add(name)
            base = module.get_base_layer()
        if isinstance(base, nn.Linear):
            found[name] = (base.out_features, base.in_features)
    return found


def tunable_layers(transformer: nn.Module) -> dict[str, nn.Module]:
    """The layers of a transformer that a LoRA may change by name, whether they carry one or not: linear ones, norms."""
    found: dict[str, nn.Module] = {}
    for name, module in transformer.named_modules():
        base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
        if isinstance(base, (nn.Linear, AcrossHeadsNorm)) and ".base_layer" not in name and ".lora_" not in name:
            found[name] = base
    return found


def _check_shapes(
    keys: LoraKeys, shapes: Mapping[str, tuple[int, ...]], layers: Mapping[str, nn.Module], source: str
) -> None:
    wrong = []
    roles = [(module, {"down": down, "up": up}) for module, (down, up) in keys.factors.items()]
    roles += [(module, {"up_bias": key}) for module, key in keys.biases.items()]
    for module, named in (*roles, *keys.changes.items()):
        layer: Any = layers[module]
        own = {role: shapes[key] for role, key in named.items()}
        fault = shape_fault(own, tuple(layer.weight.shape), getattr(layer, "bias", None) is not None)
        if fault is not None:
            wrong.append(f"{module} {fault}")
    if wrong:
        raise CheckpointError(
            f"{source} does not fit this transformer in {counted(len(wrong), 'layer')}: {'; '.join(wrong[:5])}. "
            "Use the model that it was trained on."
        )


def _changes(
    keys: LoraKeys, tensors: Mapping[str, Tensor], config: Mapping[str, Any], source: str
) -> dict[str, WeightChange]:
    """What peft's LoRA has no place for, by module, with every alpha said."""
    found: dict[str, WeightChange] = {}
    for module, roles in keys.changes.items():
        own = {role: tensors[key] for role, key in roles.items()}
        rank = update_rank({role: tuple(tensor.shape) for role, tensor in own.items()})
        alpha = None
        if rank is not None and "alpha" in roles:
            alpha = _alpha(tensors, roles["alpha"], source)
        elif rank is not None:
            alpha = settled_alpha(module, rank, config, source)
        elif "lokr_w1" in own and config.get("alpha") is not None:  # of peft, which scales two whole matrices as well
            whole = settled("r", module, config, source) or 1.0
            scale = (settled("alpha", module, config, source) or whole) / whole
            own["lokr_w1"] = own["lokr_w1"] * scale
        found[module] = WeightChange(own, alpha)
    return found


def _alpha(tensors: Mapping[str, Tensor], key: str, source: str) -> float:
    alpha = tensors[key]
    if alpha.numel() != 1 or not math.isfinite(float(alpha)):
        raise CheckpointError(f"{source}: {key!r} is not one finite number.")
    return float(alpha)


def _to_peft(
    keys: LoraKeys, tensors: Mapping[str, Tensor], config: Mapping[str, Any], source: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors under peft's names, and peft's configuration with every rank and alpha said."""
    state: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for module, (down, up) in keys.factors.items():
        state[f"{module}.lora_A.weight"], state[f"{module}.lora_B.weight"] = tensors[down], tensors[up]
        if keys.biases:  # peft has them in all layers of an adapter, or in none
            bias = tensors[keys.biases[module]] if module in keys.biases else tensors[up].new_zeros(len(tensors[up]))
            state[f"{module}.lora_B.bias"] = bias
        ranks[module] = tensors[down].shape[0]
        if module in keys.alphas:
            alphas[module] = _alpha(tensors, keys.alphas[module], source)
        else:
            alphas[module] = settled_alpha(module, ranks[module], config, source)
    rank, alpha = _commonest(ranks), _commonest(alphas)
    return state, {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {f"^{name}": value for name, value in ranks.items() if value != rank},
        "alpha_pattern": {f"^{name}": value for name, value in alphas.items() if value != alpha},
        "target_modules": sorted(ranks),
        "lora_bias": bool(keys.biases),
    }


def _commonest(values: Mapping[str, Any]) -> Any:
    return Counter(values.values()).most_common(1)[0][0]
