"""Single safetensors files in the original layout of LTX-Video: what they hold, and their tensors into models.

The configuration in the metadata is believed before anything else; names and shapes of tensors are sniffed only where
it is missing. What kinds of components a file may hold is listed in `COMPONENTS`, the one place to add another.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vgen.errors import CheckpointError, counted, listed
from vgen.io.files import json_object
from vgen.io.weights.ltx_configs import (
    Config,
    generation,
    scheduler_from_original,
    stated_facts,
    transformer_from_original,
    transformer_to_original,
    vae_from_original,
    vae_to_original,
)
from vgen.io.weights.ltx_keys import KeyTable, transformer_keys, vae_keys
from vgen.io.weights.ltx_sniff import Shapes, sniff_scheduler, sniff_transformer, sniff_vae
from vgen.io.weights.safetensors_file import TensorEntry, read_header

if TYPE_CHECKING:
    import torch
    from torch import nn

FOLDER_KEY = "vgen_folder"
"""Metadata key under which a file made from a folder keeps that folder's JSON, so that the way back is exact."""

FACTS = ("causal_coordinates", "schedule")
"""Defaults of a model that are none of a call's settings but say how it works, see `vgen.io.weights.ltx_configs`."""

_LOW_PRECISION = re.compile(r"F8_|F6_|F4|[IU]8$")
_SCALES = re.compile(r"(^|[._])(scales?|scale_inv|scaled_fp8|scale_weight|scale_input|amax\w*)$")


@dataclass(frozen=True)
class Component:
    """A kind of model that a single file may hold.

    Attributes:
        kind: its name in a pipeline and in the metadata's config.
        class_name: of the class in `vgen.models`.
        diffusers_name: of the class in diffusers that a folder's config names.
        prefixes: how its keys may begin in a file, tried in this order.
        mark: a key, after the prefix, that every file with such a component has and no other.
        table: the key table of a model with a given diffusers config.
        from_original, to_original: configs there and back.
        sniff: the original config, from shapes.
        idle: keys (after the prefix) that belong to it but are no tensors of the model.
    """

    kind: str
    class_name: str
    diffusers_name: str
    prefixes: tuple[str, ...]
    mark: str
    table: Callable[[Mapping[str, Any]], KeyTable]
    from_original: Callable[[Mapping[str, Any]], Config]
    to_original: Callable[[Mapping[str, Any]], Config]
    sniff: Callable[[Shapes], Config]
    idle: re.Pattern[str] = re.compile(r"(?!)")


COMPONENTS: dict[str, Component] = {
    "transformer": Component(
        "transformer",
        "VideoDiT",
        "LTXVideoTransformer3DModel",
        ("model.diffusion_model.", "diffusion_model.", ""),
        "patchify_proj.weight",
        transformer_keys,
        transformer_from_original,
        transformer_to_original,
        sniff_transformer,
    ),
    "vae": Component(
        "vae",
        "CausalVideoVAE",
        "AutoencoderKLLTXVideo",
        ("vae.", ""),
        "encoder.conv_in.conv.weight",
        vae_keys,
        vae_from_original,
        vae_to_original,
        sniff_vae,
        idle=re.compile(r"per_channel_statistics\.(?!(mean|std)-of-means$)"),
    ),
}
"""Kinds of components, by name. Other files (a latent upsampler, say) are read by adding their kind here."""


@dataclass(frozen=True)
class Part:
    """One component of a file.

    Attributes:
        component: what kind it is.
        prefix: how its keys begin in this file.
        original: its config as the original has it.
        config: its config as diffusers has it.
        keys: keys in the file, by the model's own.
        idle: keys in the file that are no tensors of the model.
    """

    component: Component
    prefix: str
    original: Config
    config: Config
    keys: Mapping[str, str]
    idle: tuple[str, ...]

    def file_key(self, key: str) -> str:
        """What a key of the model is called in the file."""
        return self.prefix + self.component.table(self.config).to_original(key)


@dataclass(frozen=True)
class SingleFile:
    """A file's header, read and checked; no tensor has been touched.

    Attributes:
        path: the file.
        entries: type, shape and place of every tensor.
        metadata: the file's own.
    """

    path: Path
    entries: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]

    @classmethod
    def open(cls, path: Path) -> SingleFile:
        """Read and check the header.

        Raises:
            CheckpointError: it is no sound safetensors file, or holds no component that is known.
        """
        entries, metadata = read_header(path)
        file = cls(path, entries, metadata)
        if not file.kinds:
            marks = ", ".join(f"{c.mark} ({kind})" for kind, c in COMPONENTS.items())
            raise CheckpointError(
                f"{path} holds nothing of LTX-Video 0.9.0 to 0.9.8 in its original layout: a key ending in one of "
                f"{marks} was looked for; it has {listed(sorted(entries)) or 'no tensors'}."
            )
        return file

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """The components in it."""
        return tuple(kind for kind in COMPONENTS if self._prefix(kind) is not None)

    def _prefix(self, kind: str) -> str | None:
        component = COMPONENTS[kind]
        return next((prefix for prefix in component.prefixes if prefix + component.mark in self.entries), None)

    @cached_property
    def configs(self) -> Mapping[str, Any]:
        """The config in the metadata: original configs by component, `scheduler`, `allowed_inference_steps`.

        Raises:
            CheckpointError: there is one, and it cannot be read.
        """
        return self._object("config")

    @cached_property
    def folder(self) -> Mapping[str, Any]:
        """JSON of the folder that the file was made from, by component; empty if it was not."""
        return self._object(FOLDER_KEY)

    def _object(self, key: str) -> dict[str, Any]:
        """JSON in the metadata."""
        return json_object(self.metadata.get(key, "{}"), f"{self.path}: {key!r} in its metadata")

    def part(self, kind: str) -> Part:
        """One component.

        Raises:
            CheckpointError: it is not in the file, or its config cannot be read.
        """
        prefix, component = self._prefix(kind), COMPONENTS[kind]
        if prefix is None:
            raise CheckpointError(f"{self.path} holds no {kind}, only: {', '.join(self.kinds)}. Give one: {kind}=...")
        inside = [key for key in self.entries if key.startswith(prefix)]
        try:
            original = self.configs.get(kind) or component.sniff(
                {key[len(prefix) :]: self.entries[key].shape for key in inside}
            )
            stored = {key: value for key, value in self.folder.get(kind, {}).items() if not key.startswith("_")}
            config = {**component.from_original(original), **stored}
            table = component.table(config)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, ZeroDivisionError) as error:
            said = str(error) if isinstance(error, CheckpointError) else f"its {kind} config is broken ({error!r})."
            raise CheckpointError(f"{self.path}: {said}") from None
        idle = tuple(key for key in inside if component.idle.match(key[len(prefix) :]))
        keys: dict[str, str] = {}
        for key in sorted({*inside} - {*idle}):
            name = table.to_diffusers(key[len(prefix) :])
            exact = table.to_original(name) == key[len(prefix) :] and name not in keys
            keys[name if exact else key] = key
        return Part(component, prefix, dict(original), config, keys, idle)

    @property
    def scheduler(self) -> Config:
        """Config of diffusers' flow-matching scheduler, from the metadata or as the VAE's generation has it."""
        if self.folder.get("scheduler"):
            return dict(self.folder["scheduler"])
        stated = self.configs.get("scheduler") or sniff_scheduler(self.generation)
        return scheduler_from_original(stated)

    @property
    def facts(self) -> Config:
        """What it says of positions and schedule, see `stated_facts`, or the folder that it was made from said."""
        if "model_index" in self.folder:
            defaults = self.folder["model_index"].get("defaults") or {}
            return {name: defaults[name] for name in FACTS if name in defaults}
        return stated_facts(self.configs, self.generation)

    @property
    def generation(self) -> str:
        """0.9.0, 0.9.1 or 0.9.5, by the VAE; 0.9.5 where the file holds none."""
        return generation(self.part("vae").config) if "vae" in self.kinds else "0.9.5"

    def check_precision(self, upcast_fp8: bool = False) -> None:
        """Refuse weights of a layout that cannot be read.

        Args:
            upcast_fp8: plain FP8 weights (E4M3, without scales) are to be widened.
        Raises:
            CheckpointError: says what they are and what to use in their place.
        """
        low = {key: entry.dtype for key, entry in self.entries.items() if _LOW_PRECISION.match(entry.dtype)}
        scales = [key for key in self.entries if _SCALES.search(key)]
        remedy = "Use the bfloat16 file of the same model, the one without fp8 in its name."
        if scales or set(low.values()) - {"F8_E4M3"}:
            if not low:
                return
            what = f"scales of their own ({', '.join(sorted(scales)[:2])} ...)" if scales else "another type than E4M3"
            raise CheckpointError(
                f"{self.path} holds quantised weights ({', '.join(sorted(set(low.values())))}) with {what}: that "
                f"layout is made for Lightricks' own kernels and cannot be read here. {remedy}"
            )
        if low and not upcast_fp8:
            raise CheckpointError(
                f"{self.path} holds {len(low)} FP8 weights without scales ({min(low)} ...). If they were rounded "
                f"plainly, upcast_fp8=True widens them; those made for Lightricks' kernels would give noise. {remedy}"
            )

    def check_tensors(self, part: Part, expected: Mapping[str, tuple[int, ...]]) -> None:
        """Refuse a component whose tensors are not the model's.

        Args:
            part: of this file.
            expected: shapes by the model's own keys.
        Raises:
            CheckpointError: names the first five missing, unknown and misshaped tensors, as the file calls them.
        """
        found = {key: self.entries[name].shape for key, name in part.keys.items()}
        faults = tensor_faults(expected, found, lambda key: part.keys.get(key) or part.file_key(key))
        if faults:
            raise CheckpointError(f"{self.path}: the weights of the {part.component.kind} {faults}.")

    def stray_keys(self) -> list[str]:
        """Keys that belong to no component."""
        prefixes = tuple(self._prefix(kind) or "" for kind in self.kinds)
        return sorted(key for key in self.entries if not key.startswith(prefixes))

    def load_into(
        self,
        model: nn.Module,
        part: Part,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> None:
        """Put a component's tensors into a model without memory, one after the other, each straight where it is to be.

        There is never more than one copy of the weights, and one tensor.

        Args:
            model: on the meta device; its tensors are replaced.
            part: of this file.
            device: where the tensors go.
            dtype: what floating-point tensors become; None keeps what is stored.
        Raises:
            CheckpointError: tensors that are missing, unknown or of another shape.
        """
        from safetensors import safe_open

        self.check_tensors(part, {key: tuple(value.shape) for key, value in model.state_dict().items()})
        with safe_open(self.path, framework="pt", device=str(device)) as handle:
            for key, name in part.keys.items():
                stored = handle.get_tensor(name)
                wanted = dtype if dtype is not None and stored.is_floating_point() else stored.dtype
                # On the CPU what was read is a view of the file, which may vanish or change under a model in use.
                _assign(model, key, stored.to(wanted, copy=stored.device.type == "cpu"))


def _assign(model: nn.Module, key: str, tensor: torch.Tensor) -> None:
    """Put a tensor in the place of a parameter or buffer."""
    from torch import nn

    path, _, leaf = key.rpartition(".")
    module = model.get_submodule(path)
    if leaf in module._parameters:
        module._parameters[leaf] = nn.Parameter(tensor, requires_grad=tensor.is_floating_point())
    else:
        module._buffers[leaf] = tensor


def tensor_faults(
    expected: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
    name: Callable[[str], str] = str,
) -> str:
    """What is wrong with weights, as the end of a sentence, five tensors of each fault named; "" if nothing is.

    Args:
        expected, found: shapes by key.
        name: what a key is called in the message.
    """
    wrong = sorted(key for key in expected.keys() & found.keys() if tuple(expected[key]) != tuple(found[key]))
    shapes = [f"{name(key)} is {list(found[key])}, not {list(expected[key])}" for key in wrong]
    missing = sorted(name(key) for key in expected.keys() - found.keys())
    unknown = sorted(name(key) for key in found.keys() - expected.keys())
    faults = (
        (missing, f"lack {counted(len(missing), 'tensor')}"),
        (unknown, f"hold {counted(len(unknown), 'unknown tensor')}"),
        (shapes, f"have {counted(len(wrong), 'tensor')} of another shape"),
    )
    return "; ".join(f"{what}: {listed(keys)}" for keys, what in faults if keys)
