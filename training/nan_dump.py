"""What a run leaves when it meets NaN or infinity, and how to meet it again.

A dump is a folder `nonfinite-step-00001234` with
    dump.json               what was seen, the samples, the recipe
    model.safetensors       the weights before the step
    batch-0.safetensors     the first micro-batch of this process, and so on
Random draws are functions of the step, so the same loss and gradients come out of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vgen.errors import RequestError
from vgen.io.files import follow_umask, write_json
from vgen.training.data.plan import Batch
from vgen.training.objectives.base import Objective
from vgen.training.randomness import Keys

_DESCRIBED = "dump.json"
_NAMED_PARAMETERS = 5


class Replay(NamedTuple):
    """What a step gave: its loss, the gradient's norm, and the first parameters with a gradient that is not finite."""

    loss: float
    grad_norm: float
    parameters: list[str]


def write_dump(
    folder: Path, weights: dict[str, Tensor], batches: list[Batch], seen: dict[str, Any], recipe: dict[str, Any]
) -> Path:
    """Write a dump.

    Args:
        folder: to be made; an earlier dump of the same step is overwritten.
        weights: before the step.
        batches: the micro-batches of this process.
        seen: step, seed, rank, world, loss, grad_norm and whatever else helps.
        recipe: as given.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_file(_plain(weights), folder / "model.safetensors")
    for number, batch in enumerate(batches):
        save_file(_plain(batch), folder / f"batch-{number}.safetensors")
    follow_umask(folder)
    described = {
        **seen,
        "micro_batches": [
            {
                "micro": number,
                "indices": batch["indices"].tolist(),
                "shapes": {name: list(value.shape) for name, value in batch.items()},
            }
            for number, batch in enumerate(batches)
        ],
        "recipe": recipe,
    }
    write_json(folder / _DESCRIBED, described)
    return folder


def read_dump(folder: Path) -> dict[str, Any]:
    """What dump.json says.

    Raises:
        RequestError: the folder is no dump.
    """
    try:
        described: dict[str, Any] = json.loads((folder / _DESCRIBED).read_text())
    except (OSError, ValueError):
        raise RequestError(
            f"{folder} is no dump: it has no readable {_DESCRIBED}; give a folder nonfinite-step-N of a run."
        ) from None
    return described


def replay(folder: Path, objective: Objective, described: dict[str, Any], device: torch.device, dtype: str) -> Replay:
    """Do the step of a dump again, without an optimiser.

    Args:
        folder: of the dump.
        objective: built from the dump's recipe.
        described: what `read_dump` gave.
        device: to compute on.
        dtype: "no" or "bf16", as the recipe's mixed_precision.
    """
    objective.load_state_dict(load_file(folder / "model.safetensors"))
    objective.to(device).train()
    objective.zero_grad(set_to_none=True)
    count = len(described["micro_batches"])
    total = 0.0
    for micro in range(count):
        batch = {name: value.to(device) for name, value in load_file(folder / f"batch-{micro}.safetensors").items()}
        keys = Keys(described["seed"], described["step"], micro, described["rank"], described["world"])
        torch.manual_seed(layer_seed(keys))
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bf16"):
            loss, _ = objective(batch, keys)
        (loss.float() / count).backward()
        total += float(loss.detach()) / count
    named = [(name, value) for name, value in objective.named_parameters() if value.grad is not None]
    norm = nn.utils.get_total_norm([value.grad for _, value in named if value.grad is not None])
    return Replay(total, float(norm), bad_gradients(named))


def layer_seed(keys: Keys) -> int:
    """What torch's own generator is set to before a micro-batch, for layers that draw (noise injection, dropout)."""
    return keys.number("layers") if keys.world == 1 else keys.number(f"layers {keys.rank}")


def bad_gradients(named: Iterable[tuple[str, nn.Parameter]]) -> list[str]:
    """The first few parameters whose gradient has NaN or infinity in it."""
    bad = [name for name, value in named if value.grad is not None and not bool(torch.isfinite(value.grad).all())]
    return bad[:_NAMED_PARAMETERS]


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
