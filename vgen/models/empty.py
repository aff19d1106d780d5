"""Models without memory: built on the meta device, to be filled tensor by tensor or only to know their shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

import vgen.models
from vgen.errors import CheckpointError


def empty_model(class_name: str, config: Mapping[str, Any]) -> nn.Module:
    """A model whose parameters and buffers take no memory, in evaluation mode.

    Args:
        class_name: of a class in `vgen.models`.
        config: its config.
    Raises:
        CheckpointError: no such model can be built.
    """
    try:
        with torch.device("meta"):
            return getattr(vgen.models, class_name).from_config(dict(config)).eval()
    except (TypeError, ValueError, KeyError, IndexError, ZeroDivisionError, RuntimeError) as error:
        raise CheckpointError(f"the config makes no {class_name}: {error}") from None


def model_shapes(class_name: str, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes of a model's tensors by key; see `empty_model`."""
    return {key: tuple(value.shape) for key, value in empty_model(class_name, config).state_dict().items()}
