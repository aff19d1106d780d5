"""Names in LoRA files, of every writer we know of, to the modules of our transformer; no tensor is touched here.

Three families: diffusers and peft (`transformer.`, `base_model.model.`), Lightricks' own (`diffusion_model.`, with the
original's or with diffusers' module names), and kohya's as ComfyUI reads them (`lora_unet_`, underscores for dots).
What a key is for (its role) is said by its ending, of peft, kohya, LyCORIS or ComfyUI.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from vgen.errors import CheckpointError, listed
from vgen.io.weights.ltx_keys import TRANSFORMER_KEYS

_DOTTED = {
    "base_model.model.transformer.": "diffusers",
    "base_model.model.": "diffusers",
    "transformer.": "diffusers",
    "model.diffusion_model.": "original",
    "diffusion_model.": "original",
}
_UNDERSCORED = ("lora_unet_", "lora_transformer_", "lycoris_")
_TEXT_ENCODER = ("text_encoder", "lora_te", "cond_stage_model.", "conditioner.")
_ENDINGS = {
    r"lora_A(?:\.\w+)?\.weight|lora[._]down\.weight": "down",
    r"lora_B(?:\.\w+)?\.weight|lora[._]up\.weight": "up",
    r"lora_B(?:\.\w+)?\.bias|lora[._]up\.bias": "up_bias",
    r"alpha": "alpha",
    r"dora_scale|lora_magnitude_vector(?:\.\w+){0,2}": "magnitude",
    r"diff|w_norm": "diff",
    r"diff_b|b_norm": "diff_bias",
    r"lokr_w[12](?:_[ab])?|hada_w[12]_[ab]": "",  # the ending itself
}
_ROLE = re.compile(r"\.(?:" + "|".join(f"({ending})" for ending in _ENDINGS) + r")$")
_TUCKER = re.compile(r"\.(?:lokr_t2|hada_t[12]|lora_mid\.weight)$")
_UPDATES = (
    frozenset({"down", "up"}),
    *(frozenset({*one, *two}) for one in (("lokr_w1",), ("lokr_w1_a", "lokr_w1_b"))
      for two in (("lokr_w2",), ("lokr_w2_a", "lokr_w2_b"))),
    frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}),
)  # fmt: skip
"""Roles that make an update of a weight together: LoRA, LoKr, LoHa."""
_FACTORS = frozenset(chain(*_UPDATES))
_NO_LAYER, _NO_ROLE = "name no layer of the transformer", "end in nothing that is read"
_PART = "are a part of an update whose other parts are missing"
_NORM = "are for a norm, which takes a difference (.diff, .w_norm) only"
_BLOCK_MODULES = (
    *(f"attn{n}.{name}" for n in (1, 2) for name in ("to_q", "to_k", "to_v", "to_out.0", "norm_q", "norm_k")),
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
        factors: keys of the two factors, down [r, in] and up [out, r], of modules with a plain LoRA.
        alphas: key of the alpha of those, where there is one.
        biases: key of what is added to the bias of those (`lora_B.bias`), where there is one.
        changes: everything else that is done to a module, keys by role: `diff` and `diff_bias`; a LoKr (`lokr_w1` or
            `lokr_w1_a`, `lokr_w1_b`, the same for 2), LoHa (`hada_w1_a` ...) or DoRA (`down`, `up`) with `alpha`,
            `up_bias` and `magnitude`.
        left_out: keys that are not applied, by the reason, which continues a sentence.
        text_encoder: keys that belong to a text encoder.
    """

    layout: str
    factors: Mapping[str, tuple[str, str]]
    alphas: Mapping[str, str]
    biases: Mapping[str, str]
    changes: Mapping[str, Mapping[str, str]]
    left_out: Mapping[str, tuple[str, ...]]
    text_encoder: tuple[str, ...]

    @property
    def modules(self) -> tuple[str, ...]:
        """Modules that are changed."""
        return tuple(dict.fromkeys((*self.factors, *self.changes)))

    @property
    def unmatched(self) -> tuple[str, ...]:
        """Keys that are not applied, but for those of a text encoder."""
        return tuple(chain(*self.left_out.values()))

    def faults(self) -> str | None:
        """A sentence per reason on the keys that are left out, or None."""
        said = [f"{len(keys)} keys {reason}: {_some(keys)}." for reason, keys in self.left_out.items()]
        if self.text_encoder:
            said.append(
                f"{len(self.text_encoder)} keys are for a text encoder, which takes no LoRA here: "
                f"{_some(self.text_encoder)}."
            )
        return " ".join(said) or None


def module_names(num_layers: int) -> tuple[str, ...]:
    """Names of the modules that a LoRA may change, linear layers and norms, with `num_layers` blocks."""
    blocks = (f"transformer_blocks.{n}.{name}" for n in range(num_layers) for name in _BLOCK_MODULES)
    return (*_OUTER_LINEARS, *blocks)


def map_lora_keys(keys: Iterable[str], modules: Collection[str], source: str) -> LoraKeys:
    """Find out which module every key of a LoRA file is for.

    Args:
        keys: of the file.
        modules: names of the linear layers and norms that there are.
        source: name of the file, for messages.
    Raises:
        CheckpointError: no key fits, or two are for the same.
    """
    keys, names = list(keys), _Names(modules)
    _refuse_tucker(keys, source)
    found: dict[str, dict[str, str]] = {}
    left_out: dict[str, list[str]] = {}
    text_encoder, layouts = [], []
    for key in keys:
        stem, role = _role(key)
        layout, module = names.find(stem) if role else ("", None)
        if key.startswith(_TEXT_ENCODER):
            text_encoder.append(key)
        elif role is None or module is None:
            left_out.setdefault(_NO_ROLE if role is None else _NO_LAYER, []).append(key)
        elif role in found.setdefault(module, {}):
            raise CheckpointError(f"{source}: {found[module][role]!r} and {key!r} are for the same layer {module!r}.")
        else:
            found[module][role] = key
            layouts.append(layout)
    factors: dict[str, tuple[str, str]] = {}
    alphas: dict[str, str] = {}
    biases: dict[str, str] = {}
    changes: dict[str, dict[str, str]] = {}
    for module, roles in found.items():
        usable, reason = _usable(module, roles, source)
        if len(usable) < len(roles):
            left_out.setdefault(reason, []).extend(key for role, key in roles.items() if role not in usable)
        used = {role: key for role, key in roles.items() if role in usable}
        if {"down", "up"} <= used.keys() and "magnitude" not in used:
            factors[module] = (used.pop("down"), used.pop("up"))
            alphas |= {module: used.pop("alpha")} if "alpha" in used else {}
            biases |= {module: used.pop("up_bias")} if "up_bias" in used else {}
        if used:
            changes[module] = used
    if not factors and not changes:
        raise CheckpointError(_nothing_fits(source, keys, text_encoder))
    layout = max(set(layouts), key=layouts.count)
    reasons = {reason: tuple(some) for reason, some in left_out.items()}
    return LoraKeys(layout, factors, alphas, biases, changes, reasons, tuple(text_encoder))


def is_norm(module: str) -> bool:
    """Whether a module of `module_names` is a norm."""
    return module.rpartition(".")[2].startswith("norm_")


def _usable(module: str, roles: Mapping[str, str], source: str) -> tuple[set[str], str]:
    """The roles of a module that make whole updates, and why the others are left out."""
    if is_norm(module):
        return {"diff", "diff_bias"} & roles.keys(), _NORM
    used = {"diff", "diff_bias"} & roles.keys()
    present = _FACTORS & roles.keys()
    if present in _UPDATES:
        used |= present | ({"alpha", "magnitude", "up_bias"} & roles.keys())
    elif sum(update <= present for update in _UPDATES) > 1:
        raise CheckpointError(f"{source} has two kinds of update for the layer {module!r}: {_some(roles.values())}.")
    else:
        for update in _UPDATES:
            if update <= present:
                used |= update | ({"alpha", "magnitude", "up_bias"} & roles.keys())
    return used, _PART


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
    """A key without its ending, and what the ending says; None where it is not known."""
    match = _ROLE.search(key)
    if match is None or match.lastindex is None:
        return key, None
    return key[: match.start()], list(_ENDINGS.values())[match.lastindex - 1] or match[match.lastindex]


def _refuse_tucker(keys: Iterable[str], source: str) -> None:
    for key in keys:
        if _TUCKER.search(key) and not key.startswith(_TEXT_ENCODER):
            raise CheckpointError(
                f"{source}: {key!r} is of a Tucker decomposition, which is for convolutions; this transformer has "
                "none, so the file is of another model."
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


def _some(keys: Iterable[str]) -> str:
    return listed(f"{key!r:.120}" for key in keys)


def settled_alpha(module: str, rank: int, config: Mapping[str, Any], source: str) -> float:
    """The alpha of a module that has no key of its own, so that alpha / rank is its scale.

    Args:
        module: its name.
        rank: of its factors.
        config: of peft, from the file's metadata or adapter_config.json; empty means a scale of 1.
        source: name of the file, for messages.
    Raises:
        CheckpointError: the configuration cannot be read as peft's.
    """
    alpha = settled("lora_alpha" if "lora_alpha" in config else "alpha", module, config, source)
    if alpha is None:
        return float(rank)
    return alpha * rank**0.5 if config.get("use_rslora") else alpha


def settled(name: str, module: str, config: Mapping[str, Any], source: str) -> float | None:
    """What peft's configuration says for a module: `lora_alpha`, `alpha` or `r`; None where it says nothing.

    Args:
        name: of the setting; its exceptions are in `alpha_pattern` or `rank_pattern`.
        module, config, source: see `settled_alpha`.
    Raises:
        CheckpointError: the configuration cannot be read as peft's.
    """
    kind = "rank" if name == "r" else "alpha"
    value, patterns = config.get(name), config.get(f"{kind}_pattern") or {}
    if not isinstance(patterns, Mapping):
        raise CheckpointError(f"{source}: {kind}_pattern of its configuration is not a table.")
    for pattern, own in patterns.items():
        layer = pattern.replace("\\.", ".")
        if not re.fullmatch(r"\^?[\w.]+", layer):
            raise CheckpointError(f"{source}: {kind}_pattern {pattern!r:.120} is not the name of a layer.")
        if module == layer.removeprefix("^") or (layer[0] != "^" and module.endswith(f".{layer}")):
            value = own
            break
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e6:
        raise CheckpointError(f"{source}: the {kind} of {module!r} is {value!r:.80}, which is not a usable number.")
    return float(value)
