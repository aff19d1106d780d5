"""Weights, gradients, optimiser and average divided among processes: torch's FSDP2, saved by torch's DCP.

Each part of an objective (transformer, text encoder, a VAE's encoder and decoder) is sharded by itself, its repeated
blocks one by one, and can be called as before, by all processes together. Checkpoints are sharded safetensors files,
read by any number of processes.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from vgen.errors import CheckpointError, RequestError
from vgen.training.checkpoint.store import CheckpointStore
from vgen.training.data.plan import Batch
from vgen.training.ema import Ema
from vgen.training.objectives.base import Objective
from vgen.training.randomness import Keys


def shard(objective: Objective, accelerator: Accelerator, bfloat16: bool) -> None:
    """Divide every trained part of `objective` among the processes, in place; to be done before the optimiser is built.

    Float32 weights are what is stored and stepped; with `bfloat16` they are gathered as bfloat16, and gradients are
    summed in float32.

    Raises:
        RequestError: only one process was started.
    """
    if accelerator.num_processes == 1:
        raise RequestError(
            "sharding=fsdp divides the weights among several processes, and one was started; "
            "use torchrun --nproc-per-node 2 or more, or set sharding: none."
        )
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if bfloat16 else MixedPrecisionPolicy()
    for part in _parts(objective):
        if not any(value.requires_grad for value in part.parameters()):
            continue
        for block in _blocks(part):
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(part, mesh=mesh, mp_policy=policy)
    for name, value in objective.named_parameters():
        if value.requires_grad and not isinstance(value, DTensor):
            raise RequestError(f"sharding=fsdp cannot divide {name}: it lies outside the parts of its model.")


def _parts(objective: Objective) -> Iterator[nn.Module]:
    """What is called as a module: an autoencoder's `encode` and `decode` are not, its encoder and decoder are."""
    for child in objective.children():
        if hasattr(child, "encode"):
            yield from child.children()
        else:
            yield child


def _blocks(part: nn.Module) -> Iterator[nn.Module]:
    """The outermost repeated modules: members of a ModuleList that are no lists themselves."""
    for child in part.children():
        if isinstance(child, nn.ModuleList):
            yield from (block for block in child if any(value.requires_grad for value in block.parameters()))
        else:
            yield from _blocks(child)


class Autocast(nn.Module):
    """An objective under the recipe's mixed precision; what accelerate's own wrapper is where nothing is sharded."""

    def __init__(self, objective: Objective, accelerator: Accelerator) -> None:
        super().__init__()
        self.objective = objective
        self.accelerator = accelerator

    def forward(self, batch: Batch, keys: Keys) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and what to log."""
        with self.accelerator.autocast():
            loss, logs = self.objective(batch, keys)
        return loss.float(), logs


def exchange_gradients(objective: Objective, exchange: bool) -> None:
    """Whether the next backward sums gradients over the processes; the last micro-batch of a step does."""
    for part in objective.modules():
        if isinstance(part, FSDPModule):
            part.set_requires_gradient_sync(exchange)


def divide_again(objective: Objective) -> None:
    """Drop what was gathered for calls outside training, so that weights can be written to; does nothing unsharded."""
    for part in objective.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def whole(value: Tensor) -> Tensor:
    """A tensor with all its parts; all processes must ask together."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def whole_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As `whole`, one by one, on the CPU."""
    return {name: whole(value).cpu() for name, value in tensors.items()}


def state(objective: Objective, ema: Ema, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Everything a checkpoint holds, by names that do not depend on the number of processes."""
    model = {**_weights(objective), **ema.kept}
    moments = _moments(get_optimizer_state_dict(objective, optimizer))
    return {
        **{f"model/{name}": value for name, value in model.items()},
        **{f"ema/{name}": value for name, value in ema.state_dict().items()},
        **{f"optimizer/{name}/{kind}": value for name, kinds in moments.items() for kind, value in kinds.items()},
    }


def _moments(saved: Any) -> dict[str, dict[str, Tensor]]:
    """What a whole optimiser's state remembers: tensors by weight and kind."""
    moments: dict[str, dict[str, Tensor]] = saved["state"]
    return moments


def _weights(objective: Objective) -> dict[str, Tensor]:
    """The state dictionary, weights that go by two names once."""
    names = {name for name, _ in objective.named_parameters(remove_duplicate=False)}
    aliases = names - {name for name, _ in objective.named_parameters()}
    return {name: value for name, value in objective.state_dict().items() if name not in aliases}


def write(
    store: CheckpointStore,
    accelerator: Accelerator,
    tensors: dict[str, Tensor],
    step: int,
    fingerprint: str,
    about: dict[str, Any],
) -> None:
    """Write a checkpoint, each process its part; all call together.

    Raises:
        OutputError: it could not be written.
    """
    needed = sum(value.numel() * value.element_size() for value in tensors.values())
    if accelerator.is_main_process:
        with store.writing(step, needed) as partial:
            accelerator.wait_for_everyone()
            _save(tensors, partial)
            store.describe(partial, step, fingerprint, about)
    else:
        accelerator.wait_for_everyone()
        _save(tensors, store.part(step))
    accelerator.wait_for_everyone()


def _save(tensors: dict[str, Tensor], folder: Path) -> None:
    try:
        dcp.save(tensors, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    except dcp.CheckpointException as error:
        reasons = {str(reason[0] if isinstance(reason, tuple) else reason) for reason in error.failures.values()}
        raise OSError("; ".join(sorted(reasons))) from None


def read(
    path: Path, objective: Objective, ema: Ema, optimizer: torch.optim.Optimizer | None, together: bool = True
) -> None:
    """Put a sharded checkpoint back, into sharded or whole modules.

    Args:
        path: a checkpoint that has been found whole.
        objective, ema: to be filled.
        optimizer: to be filled; None leaves it as it is.
        together: all processes of the run read; False for one that works alone.
    Raises:
        CheckpointError: the names or shapes are those of another model.
    """
    if optimizer is not None:
        _begin_moments(optimizer)
        tensors = state(objective, ema, optimizer)
    else:
        tensors = {f"model/{name}": value for name, value in _weights(objective).items()}
        tensors |= {f"ema/{name}": value for name, value in ema.state_dict().items()}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=not together)
    except (dcp.CheckpointException, RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} does not fit this recipe's model: {str(error).splitlines()[0]}") from None
    if optimizer is None:
        return
    saved = get_optimizer_state_dict(objective, optimizer)
    for name, kinds in _moments(saved).items():
        for kind in kinds:
            kinds[kind] = tensors[f"optimizer/{name}/{kind}"]
    set_optimizer_state_dict(objective, optimizer, saved)


def _begin_moments(optimizer: torch.optim.Optimizer) -> None:
    """Let the optimiser make its state, by a step that changes nothing; a checkpoint is read into it."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for value in group["params"]:
            value.grad = torch.zeros_like(value)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
