"""Models from and to a folder on this machine, by the rules of `vgen.io.weights.weight_files`."""

from __future__ import annotations

import os
from functools import wraps
from pathlib import Path
from typing import Any, Self

from diffusers.models.modeling_utils import ModelMixin

from vgen.errors import CheckpointError
from vgen.io.weights.weight_files import as_plain, find_weights, forget_broken_indices, forget_weights


class LocalWeights:
    """Mixin for diffusers' ModelMixin; put it before."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Self:
        """Load a model; as diffusers' own, but a whole file counts before an index, and every name of an index."""
        folder, variant = Path(pretrained_model_name_or_path, kwargs.get("subfolder") or ""), kwargs.get("variant")
        load: Any = super().from_pretrained  # type: ignore[misc]
        try:
            known = folder.is_dir() and find_weights(folder, variant).variant == variant
        except CheckpointError:
            known = False
        if not known:
            return load(pretrained_model_name_or_path, **kwargs)
        with as_plain(folder, variant, keep=kwargs.get("device_map") is not None) as place:
            if place == folder:
                return load(pretrained_model_name_or_path, **kwargs)
            loaded = load(
                place, **{name: value for name, value in kwargs.items() if name not in ("variant", "subfolder")}
            )
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # with output_loading_info
        model.register_to_config(_name_or_path=os.fspath(pretrained_model_name_or_path))
        return loaded

    @wraps(ModelMixin.save_pretrained, assigned=())  # pipelines look at its signature for what it takes
    def save_pretrained(
        self, save_directory: str | os.PathLike[str], is_main_process: bool = True, *args: Any, **kwargs: Any
    ) -> None:
        """Save the model; as diffusers' own, but nothing of an earlier save of the same variant is left behind."""
        if is_main_process:
            forget_weights(Path(save_directory), kwargs.get("variant"))
        super().save_pretrained(save_directory, is_main_process, *args, **kwargs)  # type: ignore[misc]
        if is_main_process:
            forget_broken_indices(Path(save_directory))
