"""LoRA on a transformer: files of every layout in, exact fusing, and a file that keeps its scales out."""

from __future__ import annotations

import json
import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vgen.engine.lossy.quantize import refuse_quantized
from vgen.errors import CheckpointError, RequestError, counted
from vgen.io.files import follow_umask
from vgen.io.weights.lora_file import DEFAULTS_KEY, METADATA_KEY, WEIGHT_NAME, LoraFile, combined_defaults
from vgen.io.weights.lora_keys import LoraKeys, map_lora_keys, settled, settled_alpha
from vgen.io.weights.safetensors_file import TensorEntry
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


@dataclass(eq=False)
class LoraState:
    """What is kept of the LoRAs of one transformer, for all pipelines that share it.

    Attributes:
        unfused: weights as they were before fusing, by layer and parameter, on the CPU.
        defaults: settings by adapter that it was made for, as its file says them.
    """

    unfused: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    defaults: dict[str, dict[str, Any]] = field(default_factory=dict)


_STATES: WeakKeyDictionary[nn.Module, LoraState] = WeakKeyDictionary()


class Loras:
    """The LoRAs of a transformer: files of every layout in, exact fusing, files out.

    Args:
        transformer: shared, perhaps, by several pipelines, and perhaps compiled.
    """

    def __init__(self, transformer: Any) -> None:
        self.transformer = transformer
        self.state = _STATES.setdefault(getattr(transformer, "_orig_mod", transformer), LoraState())

    @property
    def names(self) -> list[str]:
        """The adapters that are loaded."""
        return list(getattr(self.transformer, "peft_config", {}))

    def load(
        self,
        given: str | os.PathLike[str] | Mapping[str, Tensor],
        adapter_name: str | None = None,
        hotswap: bool = False,
        *,
        weight_name: str | None = None,
        low_cpu_mem_usage: bool = False,
        pipeline: Any = None,
    ) -> LoadedLora:
        """See `vgen.pipelines.loading.pipeline.ModelPipeline.load_lora_weights`; `pipeline` is for diffusers' hooks."""
        self._check_adapter(adapter_name, hotswap)
        layers = tunable_layers(self.transformer)
        source, config, defaults = "the LoRA", {}, {}
        entries: Mapping[str, Tensor] | Mapping[str, TensorEntry]
        if isinstance(given, Mapping):
            entries = given
        else:
            file = LoraFile.open(os.fspath(given), weight_name)
            source, config, entries, defaults = str(file.path), dict(file.config), file.entries, dict(file.defaults)
        keys = map_lora_keys(entries, layers, source)
        _check_shapes(keys, {key: tuple(entry.shape) for key, entry in entries.items()}, layers, source)
        if config.get("use_dora") and keys.factors:
            bare = next(iter(keys.factors))
            raise CheckpointError(f"{source}: its configuration says use_dora, and {bare!r} has no magnitude.")
        if hotswap and keys.changes:
            raise RequestError(
                f"{source} holds more than plain LoRA factors, which cannot be swapped in place: load it."
            )
        tensors = given if isinstance(given, Mapping) else load_file(source)
        changes = _changes(keys, tensors, config, source)
        name = adapter_name or next(n for i in range(len(self.names) + 1) if (n := f"default_{i}") not in self.names)
        if keys.factors:
            state, settings = _to_peft(keys, tensors, config, source)
            self.transformer.load_lora_adapter(
                state,
                prefix=None,
                adapter_name=name,
                metadata=settings,
                hotswap=hotswap,
                low_cpu_mem_usage=low_cpu_mem_usage,
                _pipeline=pipeline,
            )
        else:
            known = {**getattr(self.transformer, "peft_config", {}), name: LoraConfig(target_modules=[*keys.changes])}
            self.transformer.peft_config, self.transformer._hf_peft_config_loaded = known, True
        put_changes(self.transformer, name, changes)
        if any(isinstance(module, ChangedLayer) for module in self.transformer.modules()):
            self.transformer.set_adapter(name)  # as loading plain factors does
        self.state.defaults[name] = defaults
        faults = keys.faults()
        if faults:
            logger.warning("%s: left out: %s", source, faults)
        return LoadedLora(name, keys.layout, keys.modules, keys.unmatched, keys.text_encoder)

    def keep_unfused(self) -> None:
        """Keep the weights of the layers with adapters on the CPU, before the adapters are fused.

        Raises:
            RequestError: there is no LoRA, or a layer is quantised and cannot be brought back exactly.
        """
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
            self.state.unfused.setdefault(layer, weights)

    def restore_unfused(self) -> None:
        """Bring back the weights that were kept, also of layers whose adapters were unloaded since."""
        for name, weights in self.state.unfused.items():
            module = self.transformer.get_submodule(name)
            base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
            for key, weight in weights.items():
                base.get_parameter(key).data.copy_(weight)
        self.state.unfused.clear()

    def save(
        self,
        folder: str | os.PathLike[str],
        adapter_name: str | None = None,
        weight_name: str = WEIGHT_NAME,
        defaults: Mapping[str, Any] | None = None,
    ) -> Path:
        """See `vgen.pipelines.loading.pipeline.ModelPipeline.save_lora`."""
        have = self.names
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
        metadata = {"format": "pt", METADATA_KEY: json.dumps(about, sort_keys=True)}
        defaults = self.state.defaults.get(name) if defaults is None else defaults
        if defaults:
            metadata[DEFAULTS_KEY] = json.dumps(dict(defaults), sort_keys=True)
        file = Path(folder) / weight_name
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({f"transformer.{key}": value.detach().cpu().contiguous() for key, value in state.items()}, file,
                  metadata)  # fmt: skip
        follow_umask(file)
        return file

    def defaults(self, active: Callable[[], Iterable[str]]) -> dict[str, Any]:
        """Settings that the active LoRAs were made for, e.g. the sigmas of a distilled one.

        Args:
            active: names them; diffusers' own refuses to where there are none.
        Raises:
            RequestError: two of them are for different sigmas.
        """
        names = active() if self.state.defaults else ()
        return combined_defaults({name: self.state.defaults.get(name, {}) for name in names})

    def _check_adapter(self, name: str | None, hotswap: bool) -> None:
        refuse_quantized(self.transformer, "load_lora_weights")
        if name is not None and (not name or "." in name):
            raise RequestError(f"adapter_name={name!r} is not a name for an adapter; use one without dots.")
        if name in self.names and not hotswap:
            raise RequestError(f"adapter_name={name!r} is taken; use another, or delete_adapters({name!r}) before.")


def linear_layers(transformer: nn.Module) -> dict[str, tuple[int, int]]:
    """(out, in) of a transformer's linear layers by name, whether they carry a LoRA or not."""
    layers = tunable_layers(transformer).items()
    return {name: (layer.out_features, layer.in_features) for name, layer in layers if isinstance(layer, nn.Linear)}


def tunable_layers(transformer: nn.Module) -> dict[str, nn.Module]:
    """The layers of a transformer that a LoRA may change by name, whether they carry one or not: linear ones, norms."""
    layers: dict[str, nn.Module] = {}
    for name, module in transformer.named_modules():
        base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
        if isinstance(base, (nn.Linear, AcrossHeadsNorm)) and ".base_layer" not in name and ".lora_" not in name:
            layers[name] = base
    return layers


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
    changes: dict[str, WeightChange] = {}
    for module, roles in keys.changes.items():
        own = {role: tensors[key] for role, key in roles.items()}
        rank = update_rank({role: tuple(tensor.shape) for role, tensor in own.items()})
        alpha = None
        if rank is not None:
            alpha = _alpha(tensors, roles.get("alpha"), module, rank, config, source)
        elif "lokr_w1" in own and config.get("alpha") is not None:  # of peft, which scales two whole matrices as well
            whole = settled("r", module, config, source) or 1.0
            scale = (settled("alpha", module, config, source) or whole) / whole
            own["lokr_w1"] = own["lokr_w1"] * scale
        changes[module] = WeightChange(own, alpha)
    return changes


def _alpha(
    tensors: Mapping[str, Tensor], key: str | None, module: str, rank: int, config: Mapping[str, Any], source: str
) -> float:
    """The alpha that stands under `key`; without one what the configuration says, or the rank."""
    if key is None:
        return settled_alpha(module, rank, config, source)
    if tensors[key].numel() != 1 or not math.isfinite(float(tensors[key])):
        raise CheckpointError(f"{source}: {key!r} is not one finite number.")
    return float(tensors[key])


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
        alphas[module] = _alpha(tensors, keys.alphas.get(module), module, ranks[module], config, source)
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
