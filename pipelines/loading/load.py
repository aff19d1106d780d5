"""Loading: a name, a folder or a single file to a pipeline, ours or LTX ones, with errors that say what is wrong."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from safetensors import SafetensorError
from torch import nn

from vgen.errors import CheckpointError, RequestError
from vgen.hub.catalog import CATALOG, entry_named
from vgen.hub.find import file_defaults, find_text_encoder, resolve_model
from vgen.io.files import follow_umask
from vgen.io.weights.safetensors_header import check_weights
from vgen.io.weights.single_file import COMPONENTS, FACTS, SingleFile, tensor_faults
from vgen.io.weights.weight_files import as_plain, forget_broken_indices, forget_weights, weight_files
from vgen.models.empty import empty_model, model_shapes
from vgen.pipelines.call.conventions import Convention, convention_named, from_model_index
from vgen.pipelines.loading.component_checks import check_component, check_scheduler_entry
from vgen.pipelines.text.cache import DeferredText, TextCache
from vgen.pipelines.text.encoder import load_text_encoder, quietly

_TEXT = ("text_encoder", "tokenizer")
_CONVENTION_OF_GENERATION = {"0.9.0": "ltx", "0.9.1": "ltx", "0.9.5": "ltx-condition"}
"""Single files follow the pipeline class that diffusers' folders of the same version name."""


class PipelineLoading(DiffusionPipeline):
    """The part of a pipeline that reads it from disk and knows its conventions and defaults."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        device: torch.device | str | None = None,
        text_encoder_folder: str | os.PathLike[str] | None = None,
        upcast_fp8: bool = False,
        text_cache: TextCache | None = None,
        **kwargs: Any,
    ) -> Self:
        """Load a pipeline. Every pipeline of this package loads every folder, also diffusers' LTX-Video ones.

        Args:
            pretrained_model_name_or_path: a folder, a single file, or a name that `vgen.hub.find.resolve_model` knows.
            device: where to put the components.
            text_encoder_folder: a folder or cached hub repository with text_encoder/ and tokenizer/, for models that
                come without; left out, see `vgen.hub.find.find_text_encoder`.
            upcast_fp8: widen plain FP8 weights of a single file.
            text_cache: leave the text encoder out; it is loaded for prompts that the cache has not, and dropped again.
            **kwargs: as diffusers' own: torch_dtype, variant, device_map, quantization_config, components by name ...
                For a single file those that `from_single_file` takes. Of each component the weights that
                `vgen.io.weights.weight_files.find_weights` names are loaded; safetensors in any case.
        Raises:
            RequestError: `use_safetensors=False`, a variant that cannot be one, or a component that cannot be used.
            CheckpointError: an unknown name, or a folder or file that is incomplete or damaged.
        """
        if kwargs.pop("use_safetensors", None) is False:
            raise RequestError("use_safetensors=False would run what a pickle says; only safetensors are loaded.")
        found = resolve_model(pretrained_model_name_or_path, upcast_fp8=upcast_fp8, variant=kwargs.get("variant"))
        if "torch_dtype" in kwargs:  # the name that most people know; diffusers' own is now `dtype`
            kwargs["dtype"] = kwargs.pop("torch_dtype")
        if found.is_file():
            return cls.from_single_file(
                found, device=device, text_encoder_folder=text_encoder_folder, upcast_fp8=upcast_fp8,
                text_cache=text_cache, **kwargs
            )  # fmt: skip
        if "scheduler" in kwargs:
            check_component("scheduler", kwargs["scheduler"])
        else:
            check_scheduler_entry(json.loads((found / "model_index.json").read_bytes()).get("scheduler"))
        name = os.fspath(pretrained_model_name_or_path)
        if name in CATALOG and not _states_defaults(found):
            kwargs.setdefault("defaults", _as_json(CATALOG[name].defaults))
        if "defaults" in kwargs:  # the caller's settings, and still the model's own positions and schedule
            kwargs["defaults"] = {**_facts(found), **kwargs["defaults"]}
        if text_cache is not None:
            _defer_text_encoder(kwargs, found, text_encoder_folder, kwargs.get("dtype") or torch.float32, text_cache)
        elif _lacks_text_encoder(found) or text_encoder_folder is not None:
            _add_text_encoder(kwargs, found, text_encoder_folder, kwargs.get("dtype"), kwargs.get("variant"))
        variant = kwargs.pop("variant", None)
        with quietly(), as_plain(found, variant, keep=kwargs.get("device_map") is not None) as place:
            try:
                pipeline = super().from_pretrained(str(place), use_safetensors=True, **kwargs)
            except (OSError, SafetensorError, KeyError, RuntimeError, ValueError) as error:
                _check_folder(found, variant, kwargs)
                raise CheckpointError(f"The model in {found} cannot be loaded: {error}") from error
        if place != found:
            _name_by_folder(pipeline, found, kwargs)
        if "quantization_config" not in kwargs:
            for name in sorted({"transformer", "vae"} - kwargs.keys()):
                _check_tensors(getattr(pipeline, name), weight_files(found / name, variant))
        return pipeline.to(device) if device is not None else pipeline

    @classmethod
    def from_single_file(
        cls,
        path: str | os.PathLike[str],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        text_encoder_folder: str | os.PathLike[str] | None = None,
        upcast_fp8: bool = False,
        version: str | None = None,
        text_cache: TextCache | None = None,
        **kwargs: Any,
    ) -> Self:
        """Load a single safetensors file in the original layout of LTX-Video.

        Args:
            path: the file.
            device: where the tensors go, straight from the file; the CPU if left out.
            dtype: of all; left out, transformer and VAE are float32, as from a folder, the text encoder is as stored.
            text_encoder_folder: see `from_pretrained`.
            upcast_fp8: widen plain FP8 weights, see `SingleFile.check_precision`.
            version: name in `vgen.hub.catalog`, for a file that goes by another name; says only what the defaults are.
            text_cache: see `from_pretrained`.
            **kwargs: components by name, used as they are; `convention`, `defaults` and `trained`.
        Raises:
            CheckpointError: the file is damaged, incomplete or of another kind; or no text encoder is there.
            RequestError: an argument that a single file cannot take.
        """
        entry = None if version is None else entry_named(version)
        allowed = {"scheduler", "vae", "transformer", *_TEXT, "convention", "defaults", "trained"}
        if kwargs.keys() - allowed:
            raise RequestError(
                f"{', '.join(sorted(kwargs.keys() - allowed))} cannot be given for a single file: convert it to a "
                "folder first (`vgen convert FILE FOLDER`), and load that."
            )
        file = SingleFile.open(Path(path))
        file.check_precision(upcast_fp8)
        target = "cpu" if device is None else device
        components = dict(kwargs)
        for kind in ("transformer", "vae"):
            if kind not in components:
                components[kind] = load_component(file, kind, target, dtype or torch.float32)
        components.setdefault("scheduler", FlowMatchEulerDiscreteScheduler.from_config(file.scheduler))
        if text_cache is not None:
            _defer_text_encoder(components, file.path, text_encoder_folder, dtype, text_cache)
        else:
            _add_text_encoder(components, file.path, text_encoder_folder, dtype)
        components.setdefault("convention", convention_of(file))
        components.setdefault("trained", file.folder.get("model_index", {}).get("trained"))
        components["defaults"] = {**file.facts, **components.get("defaults", _as_json(file_defaults(file, entry)))}
        pipeline: Any = cls(**components)
        pipeline.register_to_config(_name_or_path=str(path))
        return pipeline.to(device) if device is not None else pipeline

    deferred_text: DeferredText | None

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; a component that cannot be used is refused, see `check_component`."""
        if name in ("scheduler", "transformer", "vae"):
            check_component(name, value)
        super().__setattr__(name, value)

    @classmethod
    def load_config(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Any:
        """Read model_index.json, with diffusers' LTX classes translated to ours."""
        config = super().load_config(pretrained_model_name_or_path, **kwargs)
        return (from_model_index(config[0]), *config[1:]) if isinstance(config, tuple) else from_model_index(config)

    @property
    def components(self) -> dict[str, Any]:
        """All that another pipeline of this package needs to share this one's models: `Other(**this.components)`."""
        shared = {name: self.config.get(name) for name in ("convention", "defaults", "trained")}
        return {**super().components, **shared, "deferred_text": self.deferred_text}

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> Self:
        """A pipeline of this task with another's models, which both then share.

        diffusers' own casts them to float32 where no dtype is given; here they stay as they are.

        Args:
            pipeline: of this package, or diffusers' LTX one with models of this package.
            **kwargs: components by name, `convention` and `defaults`, in place of the pipeline's; and torch_dtype.
        Raises:
            RequestError: the pipeline has not all of the models.
        """
        given = {name: kwargs.pop(name, None) for name in ("torch_dtype", "dtype")}
        components = {**from_model_index({"_class_name": type(pipeline).__name__}), **pipeline.components, **kwargs}
        del components["_class_name"]
        missing = {"scheduler", "vae", "transformer", *_TEXT} - components.keys()
        if missing:
            raise RequestError(
                f"{type(pipeline).__name__} has no {', '.join(sorted(missing))}: pass what is missing by name, or load "
                f"{cls.__name__}.from_pretrained(...)."
            )
        shared: Any = cls(**components)
        shared.register_to_config(_name_or_path=pipeline.config.get("_name_or_path"))
        dtype = given["dtype"] or given["torch_dtype"]
        return shared if dtype is None else shared.to(dtype=dtype)

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Save the whole pipeline, also a text encoder that is not loaded.

        As diffusers' own (`variant="fp16"`, `max_shard_size` ...), but nothing of an earlier save of the same variant
        is left behind.
        """
        deferred, text = self.deferred_text if self.text_encoder is None else None, Path(save_directory, _TEXT[0])
        if deferred is not None:
            self.register_modules(**dict(zip(_TEXT, deferred.load(), strict=True)))
        try:
            forget_weights(text, kwargs.get("variant"))  # models of ours do so themselves
            with quietly():
                super().save_pretrained(save_directory, *args, **kwargs)
            forget_broken_indices(text)
            follow_umask(Path(save_directory))
        finally:
            if deferred is not None:
                self.register_modules(**dict.fromkeys(_TEXT))

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move or convert all models; as diffusers' own, which warns that float16 fails on a CPU: here it runs."""
        kwargs.setdefault("silence_dtype_warnings", True)
        return super().to(*args, **kwargs)

    @property
    def parameters(self) -> dict[str, Any]:
        """Nothing: `components` holds them, so that `Other(**this.components, **this.parameters)` works as well."""
        return {}

    @property
    def model_convention(self) -> Convention:
        """The convention of the model, see vgen.pipelines.call.conventions."""
        named = convention_named(self.config.convention)
        early = "LTXVideo095DownBlock3D" not in self.vae.config.down_block_types
        return self._stated(named.early_name if named.early_name is not None and early else named.name)

    def _stated(self, name: str) -> Convention:
        """The convention of that name, with what the model's own file says of it."""
        return convention_named(name).stated(self.config.defaults or {})

    @property
    def name_of_model(self) -> str:
        """Name of the folder the pipeline came from, or of its class."""
        path = self.config.get("_name_or_path")
        return Path(path).name if path else type(self).__name__


def load_component(
    file: SingleFile, kind: str, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> nn.Module:
    """A model out of a single file, without ever holding more than one copy of it.

    Args:
        file: opened.
        kind: a name of `vgen.io.weights.single_file.COMPONENTS`.
        device, dtype: see `SingleFile.load_into`.
    Raises:
        CheckpointError: the component is not there, or its tensors are not the model's.
    """
    part = file.part(kind)
    model = empty_model(COMPONENTS[kind].class_name, part.config)
    file.load_into(model, part, device, dtype)
    return model


def convention_of(file: SingleFile) -> str:
    """That of the folder which the file was made from, else its generation's."""
    stored = from_model_index(file.folder.get("model_index", {})).get("convention")
    return stored or _CONVENTION_OF_GENERATION[file.generation]


def _as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    return dict(json.loads(json.dumps(dict(values))))


def _facts(folder: Path) -> dict[str, Any]:
    stated = json.loads((folder / "model_index.json").read_bytes()).get("defaults") or {}
    return {name: stated[name] for name in FACTS if name in stated}


def _states_defaults(folder: Path) -> bool:
    return bool(json.loads((folder / "model_index.json").read_bytes()).get("defaults"))


def _lacks_text_encoder(folder: Path) -> bool:
    index = json.loads((folder / "model_index.json").read_bytes())
    return any(index.get(name) == [None, None] for name in _TEXT)


def _add_text_encoder(
    components: dict[str, Any],
    model: Path,
    given: str | os.PathLike[str] | None,
    dtype: torch.dtype | None,
    variant: str | None = None,
) -> None:
    """Load text encoder and tokenizer where they are not among the components yet."""
    if not set(_TEXT) <= components.keys():
        loaded = load_text_encoder(find_text_encoder(model, given, variant), dtype, variant)
        for name, component in zip(_TEXT, loaded, strict=True):
            components.setdefault(name, component)


def _defer_text_encoder(
    components: dict[str, Any],
    model: Path,
    given: str | os.PathLike[str] | None,
    dtype: torch.dtype | None,
    cache: TextCache,
) -> None:
    """Put `DeferredText` in the place of text encoder and tokenizer."""
    also = [name for name in (*_TEXT, "quantization_config", "device_map") if components.get(name)]
    if also or isinstance(dtype, dict):
        raise RequestError(f"text_cache cannot be given together with {also[0] if also else 'a dtype for each part'}.")
    components.update(dict.fromkeys(_TEXT))
    variant = components.get("variant")
    components["deferred_text"] = DeferredText(find_text_encoder(model, given, variant), dtype, cache, variant)


def _name_by_folder(pipeline: Any, folder: Path, given: Mapping[str, Any]) -> None:
    """Let what came out of a folder of links say where its files lie."""
    pipeline.register_to_config(_name_or_path=str(folder))
    for name, component in pipeline.components.items():
        if name in given or component is None:
            continue
        if isinstance(component, ConfigMixin):
            component.register_to_config(_name_or_path=str(folder / name))
        parts: tuple[Any, Any] = (component, getattr(component, "config", None))
        for part in parts:
            if hasattr(part, "name_or_path") and not isinstance(component, ConfigMixin):
                part.name_or_path = str(folder / name)


def _check_folder(folder: Path, variant: str | None, given: Mapping[str, Any]) -> None:
    """Say what is wrong with the tensors of a folder that could not be loaded, if it is they."""
    for kind in ("transformer", "vae"):
        if kind in given:
            continue
        config = json.loads((folder / kind / "config.json").read_bytes())
        try:
            shapes = model_shapes(COMPONENTS[kind].class_name, config)
            stored = [check_weights(file) for file in weight_files(folder / kind, variant)]
        except CheckpointError as error:
            raise CheckpointError(f"{folder / kind}: {error}") from None
        _refuse_faults(
            shapes, {key: entry.shape for entries in stored for key, entry in entries.items()}, folder / kind
        )


def _check_tensors(model: nn.Module, files: Sequence[Path]) -> None:
    """Refuse weights that lack a tensor, which would silently stay random, or hold one that is not the model's."""
    stored = {key for file in files for key in check_weights(file)}
    _refuse_faults(dict.fromkeys(model.state_dict(), ()), dict.fromkeys(stored, ()), files[0].parent)


def _refuse_faults(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], folder: Path) -> None:
    faults = tensor_faults(expected, found)
    if faults:
        raise CheckpointError(
            f"The weights in {folder} {faults}. They do not belong to its config.json, or are incomplete: copy or "
            "fetch the model again."
        )
