"""An optimiser's state as one safetensors file: nothing of a checkpoint is ever unpickled.

Tensors are called MEMBER/PARAMETER/KIND ("0/12/exp_avg"): the optimiser among several, the parameter's number, and
what is kept of it. Hyper-parameters are the recipe's and are not stored.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from vgen.errors import CheckpointError

_ABOUT: Final = "optimizer"
_NARROW: Final = ("codes", "scale", "qmap")
"""What torchao's 8-bit moments are made of."""


def write_optimizer_state(state: dict[str, Any], path: Path) -> None:
    """Write what an optimiser's `state_dict` holds, or that of several, {"members": [...]}.

    Args:
        state: of AdamW, Muon, torchao's AdamW8bit, or an OptimizerGroup.
        path: of the file.
    Raises:
        SafetensorError, OSError: it cannot be written.
        CheckpointError: a kind of state that has no form here.
    """
    members = state.get("members", [state])
    tensors: dict[str, Tensor] = {}
    narrow: dict[str, list[Any]] = {}
    for place, member in enumerate(members):
        for parameter, kinds in member["state"].items():
            for kind, value in kinds.items():
                name = f"{place}/{parameter}/{kind}"
                if not isinstance(value, Tensor):
                    raise CheckpointError(f"the optimiser keeps a {type(value).__name__} as {name}: only tensors can.")
                if hasattr(value, "__tensor_flatten__"):
                    parts, narrow[name] = _narrow_parts(name, value)
                    tensors.update(parts)
                else:
                    tensors[name] = value
    about = {
        "several": "members" in state,
        "parameters": [[group["params"] for group in member["param_groups"]] for member in members],
        "narrow": narrow,
    }
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    save_file(plain, path, {_ABOUT: json.dumps(about)})


def read_optimizer_state(path: Path) -> dict[str, Any]:
    """What `write_optimizer_state` wrote, on the CPU; groups know their parameters and nothing else.

    Raises:
        SafetensorError, OSError: it cannot be read.
        CheckpointError: it is not an optimiser's state.
    """
    with safe_open(path, framework="pt") as file:
        about = json.loads((file.metadata() or {}).get(_ABOUT, "null"))
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    if about is None:
        raise CheckpointError(f"{path} is not the state of an optimiser: its header does not mention one.")
    for name, facts in about["narrow"].items():
        tensors[name] = _narrow(*(tensors.pop(f"{name}/{part}") for part in _NARROW), *facts)
    members: list[dict[str, Any]] = [
        {"state": {}, "param_groups": [{"params": numbers} for numbers in groups]} for groups in about["parameters"]
    ]
    for name, value in tensors.items():
        place, parameter, kind = name.split("/")
        members[int(place)]["state"].setdefault(int(parameter), {})[kind] = value
    return {"members": members} if about["several"] else members[0]


def _narrow_parts(name: str, value: Any) -> tuple[dict[str, Tensor], list[Any]]:
    """The tensors of a torchao 8-bit moment, and whether it is signed and which dtype it stands for."""
    if type(value).__name__ != "OptimState8bit":
        raise CheckpointError(f"the optimiser keeps a {type(value).__name__} as {name}, which has no form in a file.")
    parts = {f"{name}/{part}": getattr(value, part) for part in _NARROW}
    return parts, [value.signed, str(value.dtype).removeprefix("torch.")]


def _narrow(codes: Tensor, scale: Tensor, qmap: Tensor, signed: bool, dtype: str) -> Tensor:
    try:
        from torchao.optim.subclass_8bit import OptimState8bit
    except ImportError:
        raise CheckpointError(
            "the checkpoint was written with optimizer.name=adamw8bit, which needs torchao: pip install "
            "'vgen[low-memory]'."
        ) from None
    moment: Tensor = OptimState8bit(codes, scale, qmap, signed, getattr(torch, dtype))
    return moment
