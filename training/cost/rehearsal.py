"""What training costs, before it starts: a rehearsal without content.

The rehearsal runs the real forward and backward on tensors that have sizes but no values (torch's FakeTensorMode) and
counts what is alive at the same time. Gradient checkpointing, frozen weights, LoRA and autocast are
therefore counted as they are, not by formulas that could go stale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

from vgen.engine.memory.offload import resident_bytes, weight_bytes
from vgen.engine.memory.rehearsal import LiveBytes

Inputs = Mapping[str, Tensor]
Loss = Callable[[dict[str, Tensor]], Tensor]


class MemoryEstimate(NamedTuple):
    """Bytes a process needs to train, by what they are for."""

    weights: int
    gradients: int
    optimizer: int
    ema: int
    activations: int
    workspace: int
    """Temporary tensors of the optimiser's step, where that is the larger moment; buckets of gradients on their way."""

    @property
    def total(self) -> int:
        """Everything together."""
        return sum(self)


class _Rehearsed(nn.Module):
    """A whole micro-batch as a forward: gradient checkpointing needs the substituted weights in the backward too."""

    def __init__(self, module: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.module = module
        self.loss = loss

    def forward(self, inputs: dict[str, Tensor], autocast: AbstractContextManager[Any]) -> None:
        with autocast:
            made = self.loss(inputs)
        made.backward()


def run_on_meta(module: nn.Module, loss: Loss, inputs: Inputs) -> None:
    """A micro-batch, forward and backward, on the meta device; arguments as for `peak_bytes`."""
    weights, empty = _without_content(module, inputs, "meta")
    with _eager():
        functional_call(_Rehearsed(module, loss), weights, (empty, nullcontext()))


def peak_bytes(module: nn.Module, loss: Loss, inputs: Inputs, device: str = "cpu", bfloat16: bool = False) -> int:
    """Most bytes alive above the weights in a micro-batch: activations, temporary tensors, the gradients made so far.

    Args:
        module: holds the weights; may itself be without content (built under FakeTensorMode or on the meta device).
        loss: makes a scalar of `inputs`, through `module`; must not look at values.
        inputs: only their shapes and dtypes matter.
        device: type of the device to be trained on, "cpu" or "cuda".
        bfloat16: compute under autocast.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), _eager():
        weights, empty = _without_content(module, inputs, device)
        autocast = torch.autocast(device, torch.bfloat16) if bfloat16 else nullcontext()
        with LiveBytes() as live:
            functional_call(_Rehearsed(module, loss), weights, (empty, autocast))
    return live.peak


def _eager() -> Any:
    return torch.compiler.set_stance("force_eager")


def _without_content(module: nn.Module, inputs: Inputs, device: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    weights: dict[str, Tensor] = {}
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        made = torch.empty(value.shape, dtype=value.dtype, device=device)
        weights[f"module.{name}"] = made.requires_grad_(value.requires_grad)
    empty = {name: torch.empty(value.shape, dtype=value.dtype, device=device) for name, value in inputs.items()}
    return weights, empty


def memory_of(
    parameters: Iterable[Tensor],
    peak: int,
    *,
    optimizer: Literal["adamw", "muon", "adamw8bit"] = "adamw",
    ema: bool = True,
    processes: int = 1,
    sharded: bool = False,
    frozen_bytes: float | None = None,
) -> MemoryEstimate:
    """Memory of one process.

    Args:
        parameters: of everything that lies on the device, trained (`requires_grad`) or frozen.
        peak: `peak_bytes` of the largest micro-batch.
        optimizer: its states a trained weight: 8 bytes; muon about as many as half of them are matrices; 8-bit 2.
        ema: a float32 average is kept.
        processes: that train together; DDP adds buckets for the gradients.
        sharded: FSDP: weights, gradients, optimiser and average are divided among the processes.
        frozen_bytes: bytes a frozen weight where it is quantised (1 for int8 and fp8, about 0.56 for 4 bit).
    """
    trained = frozen = matrices = frozen_count = 0
    for value in parameters:
        if value.requires_grad:
            trained += value.numel()
            matrices += value.numel() if value.ndim == 2 else 0
        else:
            frozen_count += value.numel()
            frozen += value.numel() * value.element_size()
    if frozen_bytes is not None:
        frozen = int(frozen_count * frozen_bytes)
    states = {"adamw": 8 * trained, "muon": 8 * (trained - matrices) + 4 * matrices, "adamw8bit": 2 * trained}
    share = processes if sharded else 1
    gradients = 4 * trained // share
    activations = max(0, peak - 4 * trained)
    step_temporary = 4 * trained // share  # torch's foreach AdamW holds one list of temporary tensors
    buckets = 4 * trained if processes > 1 and not sharded else 0
    return MemoryEstimate(
        weights=(4 * trained + frozen) // share,
        gradients=gradients,
        optimizer=states[optimizer] // share,
        ema=4 * trained // share if ema else 0,
        activations=activations,
        workspace=max(0, step_temporary - activations) + buckets,
    )


LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
"""The attention's projections, as LoRA recipes usually take."""


def transformer_memory(
    config: Mapping[str, Any],
    *,
    batch: int,
    tokens: int,
    text_tokens: int = 128,
    rank: int | None = None,
    targets: Sequence[str] = LORA_TARGETS,
    frozen_bytes: float = 2.0,
    checkpointing: bool = False,
    optimizer: Literal["adamw", "muon", "adamw8bit"] = "adamw",
    ema: bool = True,
    processes: int = 1,
    sharded: bool = False,
    offload: bool = False,
) -> MemoryEstimate:
    """Memory to train a video transformer on cached latents and text, in bfloat16 with float32 trained weights.

    Nothing of the model's size is allocated, so presets can be tried in turn.

    Args:
        config: arguments of VideoDiT, as in a model's config.json (keys that begin with "_" are left out).
        batch: clips of a micro-batch.
        tokens: of a clip: latent frames x rows x columns, divided by the patch size's square.
        text_tokens: of a prompt.
        rank: of a LoRA on `targets`; None trains everything.
        targets: names of the layers that get a LoRA.
        frozen_bytes: a weight of the frozen base: 2 in bfloat16, 1 in int8 or fp8, about 0.56 in 4 bit.
        checkpointing: activations of a block are computed again in the backward.
        optimizer, ema, processes, sharded: see `memory_of`.
        offload: the frozen weights of all blocks live on the host, and two blocks at a time on the device.
    """
    from vgen.models import VideoDiT

    with torch.device("meta"):
        model = VideoDiT(**{key: value for key, value in config.items() if not key.startswith("_")})
    if rank is not None:
        from peft import LoraConfig, inject_adapter_in_model

        nn.Module.to(model.requires_grad_(False), torch.bfloat16)  # diffusers' own `to` warns about casting
        adapter = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(targets))
        inject_adapter_in_model(adapter, model, low_cpu_mem_usage=True)
        for value in model.parameters():
            if value.requires_grad:
                value.data = value.data.float()
    if checkpointing:
        model.enable_gradient_checkpointing()
    inputs = {
        "latents": torch.empty(batch, tokens, model.config.in_channels, device="meta"),
        "text": torch.empty(batch, text_tokens, model.config.caption_channels, device="meta"),
        "timestep": torch.empty(batch, device="meta"),
        "mask": torch.empty(batch, text_tokens, dtype=torch.bool, device="meta"),
        "coordinates": torch.empty(1, 3, tokens, device="meta"),
    }

    def loss(given: Inputs) -> Tensor:
        velocity = model(
            given["latents"],
            given["text"],
            given["timestep"],
            encoder_attention_mask=given["mask"],
            video_coords=given["coordinates"],
            return_dict=False,
        )[0]
        return velocity.float().square().mean()

    peak = peak_bytes(model, loss, inputs, bfloat16=True)
    estimate = memory_of(
        model.parameters(),
        peak,
        optimizer=optimizer,
        ema=ema,
        processes=processes,
        sharded=sharded,
        frozen_bytes=None if rank is None else frozen_bytes,
    )
    if offload:
        away = weight_bytes(model) - resident_bytes(model, model.transformer_blocks, frozen_only=True)
        estimate = estimate._replace(weights=estimate.weights - away)
    if rank is not None and frozen_bytes < 2.0:  # one layer at a time is brought back to bfloat16
        largest = max(value.numel() for value in model.parameters())
        estimate = estimate._replace(workspace=estimate.workspace + 2 * largest)
    return estimate
