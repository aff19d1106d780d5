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
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vgen.engine.quantize import refuse_quantized
from vgen.errors import CheckpointError, RequestError
from vgen.io.atomic import follow_umask
from vgen.io.checkpoint import TensorEntry
from vgen.io.lora_file import DEFAULTS_KEY, METADATA_KEY, WEIGHT_NAME, LoraFile
from vgen.io.lora_keys import LoraKeys, map_lora_keys, settled_alpha
from vgen.wording import counted

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
        unmatched: keys that fit no layer and were left out.
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
        layers = linear_layers(self.transformer)
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
        loaded = given if isinstance(given, Mapping) else load_file(source)
        state, settings = _to_peft(keys, loaded, config, source)
        name = adapter_name or self._free_name()
        self.transformer.load_lora_adapter(
            state,
            prefix=None,
            adapter_name=name,
            metadata=settings,
            hotswap=hotswap,
            low_cpu_mem_usage=low_cpu_mem_usage,
            _pipeline=self,
        )
        stored = {**getattr(self.transformer, _DEFAULTS, {}), name: dict(file.defaults) if file else {}}
        setattr(self.transformer, _DEFAULTS, stored)
        faults = keys.faults()
        if faults:
            logger.warning("%s: %s", source, faults)
        return LoadedLora(name, keys.layout, tuple(keys.factors), keys.unmatched, keys.text_encoder)

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
            base = module.get_base_layer()
            if type(base) is not nn.Linear:
                raise RequestError(f"fuse_lora: {name!r} is a {type(base).__name__}: use the LoRA without fusing it.")
            kept.setdefault(name, base.weight.detach().to("cpu", copy=True))
        setattr(self.transformer, _KEPT, kept)
        super().fuse_lora(components=components or ["transformer"], **kwargs)

    def unfuse_lora(self, components: list[str] | None = None, **kwargs: Any) -> None:
        """Bring back the weights as they were before `fuse_lora`, to the bit, also if its adapters were unloaded."""
        refuse_quantized(self.transformer, "unfuse_lora")
        super().unfuse_lora(components=components or ["transformer"], **kwargs)
        kept = getattr(self.transformer, _KEPT, {})
        for name, weight in kept.items():
            module = self.transformer.get_submodule(name)
            base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
            base.weight.data.copy_(weight)
        setattr(self.transformer, _KEPT, {})

    def save_lora(
        self,
        folder: str | os.PathLike[str],
        adapter_name: str | None = None,
        weight_name: str = WEIGHT_NAME,
        defaults: Mapping[str, Any] | None = None,
    ) -> Path:
        """Write a loaded LoRA in diffusers' layout, with its alphas and ranks; diffusers loads the same from it.

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
        if name not in have:
            raise RequestError(f"adapter_name={adapter_name!r} names none of the LoRAs that are loaded: {have}.")
        state = get_peft_model_state_dict(self.transformer, adapter_name=name)
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


def _check_shapes(
    keys: LoraKeys, shapes: Mapping[str, tuple[int, ...]], layers: Mapping[str, tuple[int, int]], source: str
) -> None:
    wrong = []
    for module, (down, up) in keys.factors.items():
        (wide_out, wide_in), a, b = layers[module], shapes[down], shapes[up]
        if len(a) != 2 or len(b) != 2 or a[0] != b[1] or a[0] < 1 or (b[0], a[1]) != (wide_out, wide_in):
            wrong.append(f"{module} takes [r, {wide_in}] and [{wide_out}, r], not {list(a)} and {list(b)}")
    if wrong:
        raise CheckpointError(
            f"{source} does not fit this transformer in {counted(len(wrong), 'layer')}: {'; '.join(wrong[:5])}. "
            "Use the model that it was trained on."
        )


def _to_peft(
    keys: LoraKeys, tensors: Mapping[str, Tensor], config: Mapping[str, Any], source: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors under peft's names, and peft's configuration with every rank and alpha said."""
    state: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for module, (down, up) in keys.factors.items():
        state[f"{module}.lora_A.weight"], state[f"{module}.lora_B.weight"] = tensors[down], tensors[up]
        ranks[module] = tensors[down].shape[0]
        if module in keys.alphas:
            alpha = tensors[keys.alphas[module]]
            if alpha.numel() != 1 or not math.isfinite(float(alpha)):
                raise CheckpointError(f"{source}: {keys.alphas[module]!r} is not one finite number.")
            alphas[module] = float(alpha)
        else:
            alphas[module] = settled_alpha(module, ranks[module], config, source)
    rank, alpha = _commonest(ranks), _commonest(alphas)
    return state, {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {f"^{name}": value for name, value in ranks.items() if value != rank},
        "alpha_pattern": {f"^{name}": value for name, value in alphas.items() if value != alpha},
        "target_modules": sorted(ranks),
    }


def _commonest(values: Mapping[str, Any]) -> Any:
    return Counter(values.values()).most_common(1)[0][0]
