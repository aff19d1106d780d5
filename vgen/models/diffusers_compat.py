"""Making vgen's classes known to diffusers, so that its loaders, savers, caches and guiders accept them.

Importing this module imports neither diffusers nor torch.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Collection, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, ClassVar

logger = logging.getLogger(__name__)

_METHODS = ["save_pretrained", "from_pretrained"]
_BASES = ("ModelMixin", "SchedulerMixin", "DiffusionPipeline")


class _WhenDiffusersIsImported:
    """An import hook that lets the other finders find diffusers, and gives it `names` once it has run."""

    def __init__(self, names: Collection[str]) -> None:
        self.names = names

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of diffusers from whoever finds it, with a loader that does one thing more."""
        if fullname != "diffusers":
            return None
        finders = [finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec")]
        others = (finder.find_spec(fullname, path, target) for finder in finders)
        spec = next((spec for spec in others if spec is not None), None)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                run(module)
                _give_names(sys.modules[fullname], self.names)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def announce(names: Collection[str]) -> None:
    """Let diffusers find public classes of vgen by name, such as the one that a model_index.json names.

    `DiffusionPipeline.from_pretrained` and `AutoModel.from_pretrained` look classes up in diffusers' own namespace.
    Neither diffusers nor the classes are imported here: where diffusers is not imported yet, an import hook waits.

    Args:
        names: attributes of vgen.
    """
    if "diffusers" in sys.modules:
        _give_names(sys.modules["diffusers"], names)
    else:
        sys.meta_path.insert(0, _WhenDiffusersIsImported(names))


def _give_names(diffusers: ModuleType, names: Collection[str]) -> None:
    """Look `names` up in vgen where diffusers is asked for them (PEP 562)."""
    before = vars(diffusers).get("__getattr__")

    def look_up(name: str) -> Any:
        if name in names:
            return getattr(sys.modules["vgen"], name)
        if before is not None:
            return before(name)
        raise AttributeError(f"module 'diffusers' has no attribute {name!r}")

    diffusers.__getattr__ = look_up  # type: ignore[method-assign]


def register_class(cls: type) -> type:
    """Let pipelines save `cls` as ["vgen", name], which diffusers looks up in vgen; usable as a decorator."""
    from diffusers.pipelines import pipeline_loading_utils as loading

    loading.LOADABLE_CLASSES.setdefault("vgen", {base: list(_METHODS) for base in _BASES})
    logging.getLogger("diffusers.models.modeling_utils").addFilter(_names_something)
    return cls


def _names_something(record: logging.LogRecord) -> bool:
    """False for what `ModelMixin.to` warns of where no module has to stay in float32: that [] should."""
    return "should be kept in float32: []" not in record.getMessage()


def register_single_file(cls: type, original: str) -> None:
    """Let `cls.from_single_file` read the files that diffusers' class named `original` reads."""
    from diffusers.loaders import single_file_model

    known: dict[str, Any] = single_file_model.SINGLE_FILE_LOADABLE_CLASSES
    if original in known:
        known[cls.__name__] = known[original]


def register_block(block: type, processor: type) -> None:
    """Tell diffusers' caches and layer-skipping guiders what `block` returns and how `processor` is skipped.

    The registries are private to diffusers: where they are gone, caches fail with diffusers' own message and all else
    works. Entries are set directly, because the registries' own method first imports every model of diffusers.
    """
    try:
        from diffusers.hooks._helpers import (
            AttentionProcessorMetadata,
            AttentionProcessorRegistry,
            TransformerBlockMetadata,
            TransformerBlockRegistry,
        )

        metadata = TransformerBlockMetadata(return_hidden_states_index=0, return_encoder_hidden_states_index=None)
        metadata._cls = block
        TransformerBlockRegistry._registry[block] = metadata
        AttentionProcessorRegistry._registry[processor] = AttentionProcessorMetadata(
            skip_processor_output_fn=_skipped_attention
        )
    except (ImportError, AttributeError, TypeError) as error:
        import diffusers

        logger.warning("Caches are not available with diffusers %s: %s", diffusers.__version__, error)


def _skipped_attention(module: object, hidden_states: object = None, *args: object, **kwargs: object) -> object:
    """What an attention that is skipped returns: its input."""
    return hidden_states


class OptionalConfigKeys:
    """Mixin for diffusers' ConfigMixin: leaves out of the saved config the optional keys that hold their default.

    Put it before ConfigMixin; `_optional_config_keys` maps each key to its default.
    """

    _optional_config_keys: ClassVar[dict[str, Any]] = {}

    def to_json_string(self) -> str:
        """The config as it is saved."""
        config = json.loads(super().to_json_string())  # type: ignore[misc]
        for key, default in self._optional_config_keys.items():
            if config.get(key) == json.loads(json.dumps(default)):
                config.pop(key, None)
        return json.dumps(config, indent=2, sort_keys=True) + "\n"
