"""Names in LoRA files, of every writer we know of, to the modules of our transformer; no tensor is touched here.

Three families: diffusers and peft (`transformer.`, `base_model.model.`), Lightricks' own (`diffusion_model.`, with the
original's or with diffusers' module names), and kohya's as ComfyUI reads them (`lora_unet_`, underscores for dots).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from vgen.errors import CheckpointError
from vgen.io.ltx_keys import TRANSFORMER_KEYS

_DOTTED = {
    "base_model.model.transformer.": "diffusers",
    "base_model.model.": "diffusers",
    "transformer.": "diffusers",
    "model.diffusion_model.": "original",
    "diffusion_model.": "original",
}
_UNDERSCORED = ("lora_unet_", "lora_transformer_")
_TEXT_ENCODER = ("text_encoder", "lora_te", "cond_stage_model.", "conditioner.")
_OTHER_METHODS = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "lokr_": "LoKr",
    "hada_": "LoHa",
    "lora_mid": "a Tucker decomposition",
}
_FACTOR = re.compile(r"\.(?:lora_(?P<ab>[AB])(?:\.\w+)?|lora[._](?P<side>down|up))\.weight$")
_BLOCK_LINEARS = (
    *(f"attn{n}.{name}" for n in (1, 2) for name in ("to_q", "to_k", "to_v", "to_out.0")),
    "ff.net.0.proj",
    "ff.net.2",
)
_OUTER_LINEARS = (
    "proj_in",
    "proj_out",
    "time_embed.emb.timestep_embedder.linear_1",
    "time_embed.emb.timestep_embedder.linear_2",
    "time_embed.linear",
    "caption_projection.linear_1",
    "caption_projection.linear_2",
)


@dataclass(frozen=True)
class LoraKeys:
    """What the keys of a LoRA file are for.

    Attributes:
        layout: "diffusers", "original" or "kohya".
        factors: keys of the two factors, down [r, in] and up [out, r], by module.
        alphas: key of the alpha by module, where there is one.
        unmatched: keys that belong to no module of the transformer.
        text_encoder: keys that belong to a text encoder.
    """

    layout: str
    factors: Mapping[str, tuple[str, str]]
    alphas: Mapping[str, str]
    unmatched: tuple[str, ...]
    text_encoder: tuple[str, ...]

    def faults(self) -> str | None:
        """A sentence on the keys that are left out, or None."""
        said = []
        if self.unmatched:
            said.append(f"{len(self.unmatched)} keys fit no linear layer of the transformer: {_some(self.unmatched)}.")
        if self.text_encoder:
            said.append(
                f"{len(self.text_encoder)} keys are for a text encoder, which takes no LoRA here: "
                f"{_some(self.text_encoder)}."
            )
        return " ".join(said) or None


def linear_modules(num_layers: int) -> tuple[str, ...]:
    """Names of the linear layers of a transformer with `num_layers` blocks."""
    blocks = (f"transformer_blocks.{n}.{name}" for n in range(num_layers) for name in _BLOCK_LINEARS)
    return (*_OUTER_LINEARS, *blocks)


def map_lora_keys(keys: Iterable[str], modules: Collection[str], source: str) -> LoraKeys:
    """Find out which module every key of a LoRA file is for.

    Args:
        keys: of the file.
        modules: names of the linear layers that there are.
        source: name of the file, for messages.
    Raises:
        CheckpointError: no key fits, or the file holds another kind of adapter than LoRA.
    """
    keys, names = list(keys), _Names(modules)
    _refuse_other_methods(keys, source)
    found: dict[str, dict[str, str]] = {}
    unmatched, text_encoder, layouts = [], [], []
    for key in keys:
        stem, role = _role(key)
        layout, module = names.find(stem) if role else ("", None)
        if key.startswith(_TEXT_ENCODER):
            text_encoder.append(key)
        elif module is None or role is None:
            unmatched.append(key)
        elif role in found.setdefault(module, {}):
            raise CheckpointError(f"{source}: {found[module][role]!r} and {key!r} are for the same layer {module!r}.")
        else:
            found[module][role] = key
            layouts.append(layout)
    whole = {module: roles for module, roles in found.items() if "down" in roles and "up" in roles}
    unmatched += [key for module, roles in found.items() if module not in whole for key in roles.values()]
    if not whole:
        raise CheckpointError(_nothing_fits(source, keys, text_encoder))
    return LoraKeys(
        max(set(layouts), key=layouts.count),
        {module: (roles["down"], roles["up"]) for module, roles in whole.items()},
        {module: roles["alpha"] for module, roles in whole.items() if "alpha" in roles},
        tuple(unmatched),
        tuple(text_encoder),
    )


class _Names:
    """The modules there are, under every name that a file may give them."""

    def __init__(self, modules: Collection[str]) -> None:
        self._modules = frozenset(modules)
        self._flat: dict[str, str] = {}
        for module in modules:
            original = TRANSFORMER_KEYS.to_original(f"{module}.")[:-1]
            self._flat |= {module.replace(".", "_"): module, original.replace(".", "_"): module}

    def find(self, stem: str) -> tuple[str, str | None]:
        """The layout of a key without its ending, and its module if there is one."""
        for prefix in _UNDERSCORED:
            if stem.startswith(prefix):
                return "kohya", self._flat.get(stem.removeprefix(prefix))
        prefix = next((prefix for prefix in _DOTTED if stem.startswith(prefix)), "")
        module = TRANSFORMER_KEYS.to_diffusers(f"{stem.removeprefix(prefix)}.")[:-1]
        return _DOTTED.get(prefix, "diffusers"), module if module in self._modules else None


def _role(key: str) -> tuple[str, str | None]:
    """A key without its ending, and what the ending says: down, up, alpha, or None."""
    if key.endswith(".alpha"):
        return key.removesuffix(".alpha"), "alpha"
    match = _FACTOR.search(key)
    if match is None:
        return key, None
    return key[: match.start()], {"A": "down", "B": "up"}.get(match["ab"] or "", match["side"])


def _refuse_other_methods(keys: Iterable[str], source: str) -> None:
    for key in keys:
        for sign, method in _OTHER_METHODS.items():
            if sign in key and not key.startswith(_TEXT_ENCODER):
                raise CheckpointError(
                    f"{source} is no plain LoRA: {key!r} is of {method}, which is not read; "
                    "export it as a LoRA of two factors."
                )


def _nothing_fits(source: str, keys: list[str], text_encoder: list[str]) -> str:
    if not keys:
        return f"{source} holds no tensors; a LoRA was expected."
    if len(text_encoder) == len(keys):
        return (
            f"{source} is for a text encoder alone, which takes no LoRA here: {_some(keys)}. "
            "A LoRA of the transformer was expected."
        )
    return (
        f"{source} fits no layer of this transformer. Its first keys: {_some(keys)}. Expected are keys such as "
        "'transformer.transformer_blocks.0.attn1.to_q.lora_A.weight', "
        "'diffusion_model.transformer_blocks.0.attn1.to_q.lora_A.weight' or "
        "'lora_unet_transformer_blocks_0_attn1_to_q.lora_down.weight'; a LoRA fits the model it was trained on."
    )


def _some(keys: Iterable[str], most: int = 5) -> str:
    listed = list(keys)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(f"{key!r:.120}" for key in listed[:most]) + more


def settled_alpha(module: str, rank: int, config: Mapping[str, Any], source: str) -> float:
    """The alpha of a module that has no key of its own, so that alpha / rank is its scale.

    Args:
        module: its name.
        rank: of its factors.
        config: of peft, from the file's metadata or adapter_config.json; empty means a scale of 1.
        source: name of the file, for messages.
    Raises:
        CheckpointError: the configuration cannot be read as peft's, or asks for DoRA.
    """
    if config.get("use_dora"):
        raise CheckpointError(f"{source} is no plain LoRA: its configuration says use_dora; DoRA is not read.")
    alpha = config.get("lora_alpha")
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, Mapping):
        raise CheckpointError(f"{source}: alpha_pattern of its configuration is no table.")
    for pattern, value in patterns.items():
        name = pattern.replace("\\.", ".")
        if not re.fullmatch(r"\^?[\w.]+", name):
            raise CheckpointError(f"{source}: alpha_pattern {pattern!r:.120} is no name of a layer.")
        if module == name.removeprefix("^") or (name[0] != "^" and module.endswith(f".{name}")):
            alpha = value
            break
    if alpha is None:
        return float(rank)
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not abs(alpha) < 1e6:
        raise CheckpointError(f"{source}: the alpha of {module!r} is {alpha!r:.80}, which is no usable number.")
    return float(alpha) * rank**0.5 if config.get("use_rslora") else float(alpha)
